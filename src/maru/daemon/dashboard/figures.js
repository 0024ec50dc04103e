// Numbers for people, and rates between two looks. Values only; nothing here touches the page.
//
// Rates come from counters and from the pool's own clock, so that a late frame makes no false peak. A pool that was made
// anew begins anew: a rate across that moment is unknown (null), as is a share of nothing.

const SIZES = ["B", "KiB", "MiB", "GiB", "TiB"];
export const SMOOTH_S = 5;
export const SHORTLY_S = 60;

// Three significant digits from ten on: a column of figures is easier to compare when its width is quiet.
function short(value) {
  return value >= 100 || Number.isInteger(value) ? Math.round(value).toString() : value.toFixed(1);
}

/** "4 GiB" as ["4", "GiB"]. */
export function sizeParts(bytes) {
  let power = 0;
  let value = bytes;
  while (value >= 1024 && power < SIZES.length - 1) {
    value /= 1024;
    power += 1;
  }
  return [power === 0 ? Math.round(value).toString() : short(value), SIZES[power]];
}

export const size = (bytes) => sizeParts(bytes).join(" ");
export const bandwidth = (bytesPerS) => (bytesPerS === null ? "–" : `${size(bytesPerS)}/s`);
export const count = (number) => Math.round(number).toLocaleString("en-US");
export const perSecond = (rate) => (rate === null ? "–" : `${rate > 0 && rate < 10 ? rate.toFixed(1) : count(rate)}/s`);
export const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);

/** A duration in the unit that suits it. */
export function seconds(value) {
  if (value === null || Number.isNaN(value)) return "–";
  if (value < 0) return `−${seconds(-value)}`;
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${short(value * 1e3)} ms`;
  for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (value >= length) return `${(value / length).toFixed(1)} ${unit}`;
  }
  return `${value.toFixed(1)} s`;
}

/** What a sample or a frame says of one pool's counters, in one form. */
export function point(unixS, pool) {
  const { uuid, now_ns: nowNs, used_bytes: usedBytes } = pool;
  const counters = pool.counters ?? pool;
  return {
    unixS, uuid, nowNs, usedBytes,
    lookups: counters.lookup_keys, hits: counters.hit_keys,
    read: counters.pinned_bytes, stored: counters.stored_bytes,
  };
}

/** What happened from one point to a later one, per second. */
export function between(before, now) {
  if (!before || before.uuid !== now.uuid || now.nowNs <= before.nowNs) {
    return { hitShare: null, lookups: null, read: null, stored: null };
  }
  const elapsedS = (now.nowNs - before.nowNs) / 1e9;
  const grown = (field) => Math.max(0, now[field] - before[field]);
  const lookups = grown("lookups");
  return {
    hitShare: lookups > 0 ? Math.min(1, grown("hits") / lookups) : null,
    lookups: lookups / elapsedS,
    read: grown("read") / elapsedS,
    stored: grown("stored") / elapsedS,
  };
}

/** The latest point that is at least `agoS` older than the last one, or the oldest there is. */
export function earlier(points, agoS, at = points.length - 1) {
  let index = at - 1;
  while (index > 0 && points[at].unixS - points[index].unixS < agoS - 0.5) index -= 1;
  return index >= 0 ? points[index] : null;
}

/** Buckets of a histogram, less those of an earlier look. */
export function since(now, before) {
  if (!before || before.length !== now.length) return now;
  const grown = now.map(([bound, total], index) => [bound, total - before[index][1]]);
  return grown.some(([, total]) => total < 0) ? now : grown;
}

/** Seconds within which `share` of what was counted was done; null of nothing. */
export function quantile(buckets, share) {
  const total = buckets.reduce((sum, [, number]) => sum + number, 0);
  if (total === 0) return null;
  let below = 0;
  let floorS = 0;
  for (const [bound, number] of buckets) {
    if (number > 0 && below + number >= share * total) {
      return bound === null ? floorS : floorS + ((bound - floorS) * (share * total - below)) / number;
    }
    below += number;
    floorS = bound ?? floorS;
  }
  return floorS;
}
