#include "tally.h"

namespace maru {

void start_tally(Pool& pool) {
  if (!pool.tally) pool.tally = std::make_unique<Tally>(pool.geometry.namespace_limit);
}

std::vector<TallyTaken> take_tally(Pool& pool) {
  std::vector<TallyTaken> out;
  if (!pool.tally) return out;
  std::vector<TallyRow>& rows = pool.tally->rows;
  for (uint32_t id = 0; id < rows.size(); id++)
    for (uint32_t kind = 0; kind < rows[id].of_kind.size(); kind++) {
      TallyRow::Sums& sums = rows[id].of_kind[kind];
      if (sums.calls.load(std::memory_order_relaxed) == 0 && sums.bytes.load(std::memory_order_relaxed) == 0)
        continue;
      TallyTaken taken{{},
                       {},
                       static_cast<TallyKind>(kind),
                       sums.calls.exchange(0),
                       sums.chunks.exchange(0),
                       sums.bytes.exchange(0)};
      if (id + 1 < rows.size()) {
        const NamespaceRow& row = pool.namespaces[id];
        taken.digest.assign(reinterpret_cast<const char*>(row.digest), sizeof row.digest);
        taken.tenant.assign(row.tenant, strnlen(row.tenant, sizeof row.tenant));
      }
      out.push_back(std::move(taken));
    }
  return out;
}

}  // namespace maru
