"""`maru top`: pools live in a terminal, seen from beside them or through a daemon. Needs the extra `top` (textual).

Holds:   where figures come from (`sources`), what happened between two looks (`trail`), what other hosts do
         (`host_view`), and the screen itself (`screen`). One pool closely is drawn by `stat_view`, as in `maru stat`.
"""
