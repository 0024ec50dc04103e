// The dashboard: what of a frame stands where on the page. Text reaches the page as text only.
//
// A frame changes what differs and leaves the rest alone, so that a selection or a scroll position survives it.

import { Lines, bar, setBar } from "./charts.js";
import * as figures from "./figures.js";
import { Live } from "./live.js";

const WINDOW_S = 600;
const TOKEN = "maru-token";
const at = (id) => document.getElementById(id);

const points = new Map(); // Pool name -> points, oldest first.
const rpcLooks = []; // {unixS, rpc}, oldest first, a minute of them.
let frame = null;
let chosen = wanted();

const live = new Live({
  token: () => sessionStorage.getItem(TOKEN),
  onEvent: (name, document) => (name === "history" ? takeHistory(document) : takeFrame(document)),
  onState: showState,
});

const hits = new Lines(at("hits-chart"), {
  label: "Hit rate over the last ten minutes", yMax: 1,
  series: [{ name: "Hit rate", field: "hitShare" }],
  format: (share, exact) => (share === null ? "no lookups" : exact ? figures.percent(share) : `${Math.round(100 * share)} %`),
});
const bandwidth = new Lines(at("bandwidth-chart"), {
  label: "Bandwidth over the last ten minutes", base: 1024,
  series: [{ name: "Read", field: "read" }, { name: "Stored", field: "stored" }],
  format: figures.bandwidth,
});

// ---- The connection --------------------------------------------------------------------------------------------------

function showState(state, about = {}) {
  const isSigningIn = state === "signIn";
  const told = {
    connecting: frame ? "Connecting again" : "Connecting",
    live: "Live",
    lost: `Connection lost (${about.why}); trying again in ${figures.seconds(about.againS ?? 0)}`,
    signIn: "Not signed in",
  };
  // Between two attempts the page goes on saying that the connection is lost, with figures of an earlier time.
  const isLost = state === "lost" || (state === "connecting" && frame !== null);
  at("state").dataset.state = isLost ? "lost" : state === "signIn" ? "connecting" : state;
  setText(at("state-text"), told[state] + (isLost && frame ? `. Figures of ${clock(frame.daemon.now_unix_s)}` : ""));
  document.body.classList.toggle("is-stale", isLost);
  at("try-now").hidden = state !== "lost";
  at("sign-out").hidden = isSigningIn || !sessionStorage.getItem(TOKEN);
  at("figures").hidden = isSigningIn || !frame;
  if (isSigningIn && at("sign-in").hidden) askForToken(about);
  at("sign-in").hidden = !isSigningIn;
  if (isSigningIn) at("token").focus();
}

function askForToken({ status, hadToken }) {
  const wrong = status === 403 ? "This token may not look at figures." : "This token is not valid here.";
  sessionStorage.removeItem(TOKEN);
  setText(at("sign-in-error"), hadToken ? wrong : "");
  at("token").value = "";
}

at("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at("token").value.trim());
  at("sign-in").hidden = true;
  live.connect();
});
at("sign-out").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  points.clear();
  frame = null;
  live.connect();
});
at("try-now").addEventListener("click", () => live.connect());
at("pool").addEventListener("change", () => choose(at("pool").value));
window.addEventListener("hashchange", () => choose(wanted()));

/** The pool that the address names, if it can be read. */
function wanted() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function choose(name) {
  chosen = name;
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  if (frame) show();
}

// ---- What comes in ---------------------------------------------------------------------------------------------------

function takeHistory(samples) {
  points.clear();
  for (const sample of samples) {
    for (const [name, pool] of Object.entries(sample.pools)) remember(name, figures.point(sample.unix_s, pool));
  }
}

function takeFrame(next) {
  frame = next;
  const unixS = frame.daemon.now_unix_s;
  for (const { name, stats } of frame.pools) {
    if (stats) remember(name, figures.point(unixS, stats));
  }
  rpcLooks.push({ unixS, rpc: frame.rpc });
  while (rpcLooks.length > 2 && rpcLooks[1].unixS <= unixS - figures.SHORTLY_S) rpcLooks.shift();
  show();
}

function remember(name, next) {
  const kept = points.get(name) ?? [];
  if (kept.length && next.unixS <= kept.at(-1).unixS) return;
  kept.push(next);
  while (kept[0].unixS < next.unixS - WINDOW_S - figures.SMOOTH_S) kept.shift();
  points.set(name, kept);
}

// ---- What is shown ---------------------------------------------------------------------------------------------------

function show() {
  at("figures").hidden = false;
  const { daemon, ready } = frame;
  setText(at("daemon-name"), daemon.name);
  setText(at("daemon-about"), `version ${daemon.version}, up for ${figures.seconds(daemon.now_unix_s - daemon.started_unix_s)}`);
  document.title = `${daemon.name} – Maru`;
  at("not-ready").hidden = ready.is_ready;
  setText(at("not-ready"), `Not ready: ${ready.why_not}`);
  const pool = showChoice();
  at("pool-view").hidden = !pool?.stats;
  at("pool-error").hidden = Boolean(pool?.stats);
  setText(at("pool-error"), pool ? pool.error ?? "" : "This daemon serves no pool.");
  if (pool?.stats) showPool(pool.name, pool.stats);
  showHosts();
}

function showChoice() {
  const names = frame.pools.map(({ name }) => name);
  if (names.join("\n") !== [...at("pool").options].map(({ value }) => value).join("\n")) {
    at("pool").replaceChildren(...names.map((name) => new Option(name, name)));
  }
  const pool = frame.pools.find(({ name }) => name === chosen) ?? frame.pools[0];
  at("pool-choice").hidden = names.length < 2;
  if (pool && at("pool").value !== pool.name) at("pool").value = pool.name;
  return pool;
}

function showPool(name, stats) {
  const kept = points.get(name);
  const rows = kept.map((now, index) => ({
    unixS: now.unixS, ...figures.between(figures.earlier(kept, figures.SMOOTH_S, index), now),
  }));
  hits.show(rows);
  bandwidth.show(rows);
  showTiles(stats, kept, rows.at(-1));
  const used = (bytes) => bytes / stats.size_bytes;
  const total = stats.namespace_count;
  const spaces = stats.namespaces.filter((row) => row.id !== 0 || row.chunks > 0); // What belongs to no namespace: row 0.
  const more = total > stats.namespaces.length ? `The largest ${stats.namespaces.length} of ${total}` : "Who takes up how much";
  setText(at("namespaces-more"), more);
  fill("namespaces", ["Tenant", "Digest", ">Chunks", ">Size", ">Of the pool", ""], spaces.map((row) => [
    row.id === 0 ? "of no namespace" : row.tenant || "–", row.id === 0 ? "–" : row.digest.slice(0, 12), figures.count(row.chunks), figures.size(row.bytes),
    figures.percent(used(row.bytes)), { share: used(row.bytes) },
  ]));
  fill("classes", [">Chunk", ">Slabs", ">Free chunks", ">Of the pool", ""], stats.classes.map((row) => {
    const share = used(row.slabs * stats.slab_bytes);
    return [figures.size(row.chunk_bytes), figures.count(row.slabs), figures.count(row.free_chunks),
      figures.percent(share), { share }];
  }));
  fill("processes", ["Pid", "Name", "State", ">Attached for", ">Pins", ">Oldest key pin"], stats.processes.map((row) => [
    String(row.pid), row.name, row.alive ? "alive" : { text: "✕ dead", bad: true },
    figures.seconds((stats.now_ns - row.attached_ns) / 1e9), figures.count(row.pins),
    row.key_pins ? figures.seconds(row.key_pin_ns / 1e9) : "–",
  ]));
  const holder = new Map(stats.processes.map((row) => [row.number, row]));
  const who = (row) => [String(row.pid || "–"), holder.get(row.process)?.name ?? "nobody"];
  fill("pins", ["Slot", "Pid", "Process", ">Pins", ">Size", ">Epochs since a hit"], stats.oldest_pins.map((row) => [
    String(row.slot), ...who(row), figures.count(row.count), figures.size(row.bytes), figures.count(row.epochs_since_hit),
  ]));
  fill("waits", ["Slot", "Pid", "Process", "State", ">Size", ">Deadline in"], stats.reservations.map((row) => {
    const leftS = (row.deadline_ns - stats.now_ns) / 1e9;
    return [String(row.slot), ...who(row), row.alive ? row.state : { text: `${row.state}, ✕ dead`, bad: true },
      figures.size(row.bytes), { text: figures.seconds(leftS), bad: leftS < 0 }];
  }));
  fill("segments", ["Number", "Medium", "State", ">Size"], stats.segments.map((row, number) => [
    String(number), row.medium, { text: row.state.toLowerCase(), bad: row.state !== "ONLINE" }, figures.size(row.bytes),
  ]));
}

function showTiles(stats, kept, now) {
  const shortly = figures.between(figures.earlier(kept, figures.SHORTLY_S), kept.at(-1));
  const pins = stats.processes.reduce((sum, row) => sum + row.pins, 0);
  const alive = stats.processes.filter((row) => row.alive).length;
  const [used, unit] = figures.sizeParts(stats.used_bytes);
  tile("used", "In use", used, unit, `of ${figures.size(stats.size_bytes)}`, stats.used_bytes / stats.size_bytes);
  tile("hit-rate", "Hit rate", ...split(figures.percent(shortly.hitShare)), "over the last minute");
  tile("lookups", "Lookups", ...split(figures.perSecond(now.lookups), "/s"), "keys asked for");
  tile("read", "Read in place", ...split(figures.bandwidth(now.read)), "no bytes are copied");
  tile("stored", "Stored", ...split(figures.bandwidth(now.stored)), `${figures.count(stats.chunks.sealed)} chunks are there`);
  tile("in-flight", "In flight", figures.count(stats.chunks.reserved), "", "chunks being written");
  tile("pins", "Pins", figures.count(pins), "", `held by ${alive} ${alive === 1 ? "process" : "processes"}`);
}

/** "4 GiB/s" in two parts: a large figure and a small unit. */
function split(text, unit = " ") {
  const place = text.indexOf(unit);
  return place < 0 ? [text, ""] : [text.slice(0, place), text.slice(place).trim()];
}

function tile(name, title, figure, unit, about, share = null) {
  let made = at(`tile-${name}`);
  if (!made) {
    made = element("div", {}, element("dt", {}, title), element("dd", {}, element("span"), " ", element("small")));
    made.id = `tile-${name}`;
    made.append(element("dd", { className: "about" }));
    if (share !== null) made.lastChild.before(element("dd", { className: "about" }, bar(share)));
    at("tiles").append(made);
  }
  const [value, small] = made.querySelectorAll("dd span, dd small");
  setText(value, figure);
  setText(small, unit);
  setText(made.lastChild, about);
  if (share !== null) setBar(made.querySelector(".bar"), share);
}

function showHosts() {
  const { rpc, leases, peers, keeps } = frame;
  const first = rpcLooks[0];
  const elapsedS = frame.daemon.now_unix_s - first.unixS;
  const rate = (now, before) => (elapsedS > 0 ? Math.max(0, now - (before ?? 0)) / elapsedS : null);
  const sum = (counts) => Object.values(counts).reduce((total, number) => total + number, 0);
  const clients = `${figures.count(rpc.clients)} ${rpc.clients === 1 ? "client" : "clients"}`;
  const inS = figures.bandwidth(rate(rpc.bytes_in, first.rpc.bytes_in));
  const outS = figures.bandwidth(rate(rpc.bytes_out, first.rpc.bytes_out));
  const failed = sum(rpc.errors);
  tile("requests", "Requests", ...split(figures.perSecond(rate(sum(rpc.requests), sum(first.rpc.requests))), "/s"),
    "of other hosts, by RPC");
  setText(at("rpc-about"), `${clients}; ${inS} in, ${outS} out; ${figures.count(failed)} refused so far; over the last minute`);
  fill("rpc", ["Operation", ">Rate", ">Median", ">99 of 100 within", ">Since the start"],
    Object.entries(rpc.requests).sort().map(([op, total]) => {
      const buckets = rpc.seconds[op]?.buckets ?? [];
      const shortly = figures.since(buckets, first === rpcLooks.at(-1) ? null : first.rpc.seconds[op]?.buckets);
      return [op, figures.perSecond(rate(total, first.rpc.requests[op])), figures.seconds(figures.quantile(shortly, 0.5)),
        figures.seconds(figures.quantile(shortly, 0.99)), figures.count(total)];
    }));
  fill("leases", ["Host", "Bytes", "Pool", ">Ends in", ">Pins", ">Pinned", ">Being written"], leases.map((row) => [
    row.host, row.kind, row.pool || "–", { text: figures.seconds(row.seconds_left), bad: row.seconds_left < 0 },
    figures.count(row.pins), figures.size(row.pinned_bytes), figures.count(row.reservations),
  ]));
  fill("keeps", ["Pool", ">Chunks", ">Size", ">Ends in"], keeps.map((row) => [
    row.pool, figures.count(row.chunks), figures.size(row.bytes), figures.seconds(row.seconds_left),
  ]));
  showPlaces(frame.below);
  fill("peers", ["Name", "Address", "Pools", ">Seen"], peers.map((row) => [
    row.name, row.url, row.pools.join(", ") || "–", `${figures.seconds(row.seen_ago_s)} ago`,
  ]));
}

function showPlaces({ places = [], demoter, promoter }) {
  setText(at("places-about"), demoter
    ? `${figures.size(demoter.copied_bytes)} of ${figures.size(demoter.resident_bytes)} in the pool have a copy, ${figures.count(promoter.promoted)} chunks came up, ${figures.count(demoter.dropped)} left without a copy`
    : "Where chunks go before they leave the pool");
  fill("places", ["Place", "State", ">Stored", ">at", ">Loaded", ">at", ">No use"], places.map((row) => {
    const failed = row.timeouts + row.failures + row.full + row.torn;
    const speed = (bytes) => (bytes === null ? "–" : figures.bandwidth(bytes));
    return [row.url, row.state === "up" ? row.state : { text: `✕ ${row.state}`, bad: true },
      figures.size(row.stored_bytes), speed(row.store_bytes_per_s), figures.size(row.loaded_bytes), speed(row.load_bytes_per_s),
      { text: figures.count(failed), bad: failed > 0 }];
  }));
}

// ---- The page --------------------------------------------------------------------------------------------------------

function clock(unixS) {
  return new Date(unixS * 1000).toLocaleTimeString("en-GB");
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A table of `rows`; a heading that begins with ">" is of figures. A cell is a text, {text, bad} or {share}. */
function fill(id, headings, rows) {
  const table = at(id);
  if (!table.tHead) {
    const heads = headings.map((name) => element("th", { scope: "col", className: name.startsWith(">") ? "number" : "" },
      name.replace(">", "")));
    table.append(element("thead", {}, element("tr", {}, ...heads)), element("tbody"));
  }
  const [body] = table.tBodies;
  const shown = rows.length ? rows : [["None"]];
  while (body.rows.length > shown.length) body.deleteRow(-1);
  shown.forEach((cells, index) => {
    const row = body.rows[index] ?? body.insertRow();
    while (row.cells.length > cells.length) row.deleteCell(-1);
    cells.forEach((cell, column) => showCell(row.cells[column] ?? row.insertCell(), cell, headings[column], rows.length));
    row.cells[0].colSpan = rows.length ? 1 : headings.length;
  });
}

function showCell(place, cell, heading, isFigure) {
  if (cell.share !== undefined) {
    if (!place.querySelector(".bar")) place.replaceChildren(bar(cell.share));
    setBar(place.firstChild, cell.share);
    return;
  }
  const kinds = [isFigure && heading.startsWith(">") ? "number" : "", cell.bad ? "bad" : "", isFigure ? "" : "none"];
  place.className = kinds.filter(Boolean).join(" ");
  setText(place, cell.text ?? cell);
}

live.connect();
