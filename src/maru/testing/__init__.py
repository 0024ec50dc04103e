"""The test kit that ships with Maru: processes that die where a test says, traffic whose bytes can be recognised.

Nothing in the product imports it. It needs the test build of the core (MARU_CORE=testing), which the checkout builds
and a release does not.
"""
