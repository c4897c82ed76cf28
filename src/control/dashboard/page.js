// The dashboard: asks /v1/overview every second while somebody looks, and draws what changed from one answer to the next.

const EVERY = 1000, KEPT = 300, LINES = 6;
const $ = (id) => document.getElementById(id);
const history = []; // {at, view, rates}, the oldest first
let looks = []; // the last two different looks at the talkers

// --- numbers ---
const scaled = (value, base, units) => {
  let at = 0;
  while (Math.abs(value) >= base && at < units.length - 1) { value /= base; at++; }
  const digits = at === 0 ? (value % 1 && value < 10 ? 1 : 0) : value < 10 ? 2 : value < 100 ? 1 : 0;
  return value.toFixed(digits) + units[at];
};
const short = (value) => value == null ? "–" : scaled(value, 1000, ["", " k", " M", " G", " T"]);
const bits = (value) => value == null ? "–" : scaled(value, 1000, [" bit/s", " kbit/s", " Mbit/s", " Gbit/s", " Tbit/s"]);
const bytes = (value) => value == null ? "–" : scaled(value, 1000, [" B", " kB", " MB", " GB", " TB"]);
const percent = (value) => value == null ? "–" : (value * 100).toFixed(value < 0.1 ? 1 : 0) + " %";
const whole = (value) => value == null ? "–" : value.toLocaleString("en");
const duration = (s) => s >= 86400 ? Math.floor(s / 86400) + " d " + Math.floor(s % 86400 / 3600) + " h"
  : s >= 3600 ? Math.floor(s / 3600) + " h " + Math.floor(s % 3600 / 60) + " min"
  : s >= 60 ? Math.floor(s / 60) + " min " + Math.floor(s % 60) + " s" : Math.floor(s) + " s";
const instant = (s) => s < 1e-3 ? +(s * 1e6).toFixed(3) + " µs" : s < 1 ? +(s * 1e3).toFixed(3) + " ms" : s + " s";

// --- from two answers, what happened in between ---
// Counters that went back began anew: then nobody knows.
const rate = (now, then, seconds) => now == null || then == null || now < then || seconds <= 0 ? null : (now - then) / seconds;
const by = (rows, key) => new Map(rows.map((row) => [row[key], row]));
const sum = (values) => values.reduce((all, value) => all + (value || 0), 0);

function rates(now, then) {
  const s = now.at - then.at, of = (a, b, key) => rate(a && a[key], b && b[key], s);
  const ports = new Map(), before = by(then.ports, "port");
  for (const port of now.ports) {
    const old = before.get(port.port) || {}, [dev, was] = [port.device, old.device];
    const times8 = (value) => value == null ? null : value * 8;
    ports.set(port.port, {
      rx: of(port, old, "rx_packets"), tx: of(port, old, "tx_packets"), dropped: of(port, old, "tx_dropped"),
      rxBits: times8(of(dev, was, "rx_bytes")), txBits: times8(of(dev, was, "tx_bytes")),
      missed: dev && was ? rate(dev.rx_missed + dev.rx_no_buffer, was.rx_missed + was.rx_no_buffer, s) : null,
    });
  }
  const reasons = by(then.drops, "reason");
  // A reason that was not told of before had counted nothing.
  const drops = new Map(now.drops.map((row) => [row.reason, rate(row.packets, (reasons.get(row.reason) || { packets: 0 }).packets, s)]));
  const hit = new Map(then.rules.most_hit.map((row) => [row.stage + "\n" + row.rule, row]));
  const rules = new Map(now.rules.most_hit.map((row) => {
    const key = row.stage + "\n" + row.rule;
    return [key, of(row, hit.get(key), "packets")];
  }));
  const load = now.workers.map((worker, at) => {
    const a = worker.account, b = (then.workers[at] || {}).account;
    return b && a.cycles > b.cycles ? (a["busy-cycles"] - b["busy-cycles"]) / (a.cycles - b.cycles) : null;
  });
  const account = (key) => rate(now.account[key], then.account[key], s);
  return {
    ports, drops, rules, load, received: account("received"), sent: account("sent"), dropped: account("dropped"),
    fresh: now.flows && then.flows ? rate(now.flows.new, then.flows.new, s) : null,
  };
}

// The class that holds the share of all samples between two answers.
function quantile(now, then, share) {
  const was = then ? then.latency : { classes: [], longer: 0 };
  const counts = now.latency.classes.map(([most, n], at) => [most, n - (was.classes[at] ? was.classes[at][1] : 0)]);
  const all = sum(counts.map(([, n]) => n)) + now.latency.longer - was.longer;
  if (all <= 0) return null;
  let seen = 0;
  for (const [most, n] of counts) {
    seen += n;
    if (seen >= all * share) return "≤ " + instant(most);
  }
  return "> 1 s";
}

// --- drawing ---
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const hover = new Map(); // canvas to the share of its width that is pointed at

function step(top) {
  const size = 10 ** Math.floor(Math.log10(top / 3 || 1));
  return size * [1, 2, 5, 10].find((n) => size * n * 3 >= top);
}

// series: {name, dashed, tint, of(entry)}
function chart(id, series, format, least = 1) {
  const canvas = $(id), key = $(id + "-key"), ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width) return;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const entries = history.slice(1);
  const values = series.map((line) => entries.map((entry) => line.of(entry)));
  const top = Math.max(least, ...values.flat().map((value) => value || 0));
  const tick = step(top), most = tick * Math.ceil(top / tick - 1e-9);
  const [left, right, above, below] = [62, 6, 6, 18];
  const last = entries.length ? entries[entries.length - 1].at : 0;
  // As much as there is, a minute at least.
  const span = Math.max(60, entries.length ? last - entries[0].at : 0), minutes = Math.max(1, Math.round(span / 60));
  const x = (at) => left + (width - left - right) * (1 - (last - at) / span);
  const y = (value) => above + (height - above - below) * (1 - value / most);
  pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
  pen.textBaseline = "middle";
  pen.lineWidth = 1;
  for (let at = 0; at <= most + tick / 2; at += tick) {
    pen.strokeStyle = colour("--line");
    pen.beginPath(); pen.moveTo(left, y(at)); pen.lineTo(width - right, y(at)); pen.stroke();
    pen.fillStyle = colour("--soft");
    pen.textAlign = "right";
    pen.fillText(format(at).replace("bit/s", "b"), left - 6, y(at));
  }
  for (let back = 0; back <= minutes; back++) {
    if (x(last - back * 60) < left - 1) continue;
    pen.textAlign = back === 0 ? "right" : x(last - back * 60) < left + 20 ? "left" : "center";
    pen.fillText(back ? "−" + back + " min" : "now", x(last - back * 60), height - 7);
  }
  const tints = series.map((line, at) => "--c" + (line.tint === undefined ? at : line.tint) % 8);
  series.forEach((line, at) => {
    pen.strokeStyle = colour(tints[at]);
    pen.lineWidth = 1.6;
    pen.setLineDash(line.dashed ? [4, 3] : []);
    pen.beginPath();
    let down = false;
    values[at].forEach((value, i) => {
      if (value == null) { down = false; return; }
      pen[down ? "lineTo" : "moveTo"](x(entries[i].at), y(value));
      down = true;
    });
    pen.stroke();
  });
  pen.setLineDash([]);
  let shown = entries.length - 1;
  if (hover.has(canvas) && entries.length) {
    const at = last - span * (1 - (hover.get(canvas) * width - left) / (width - left - right));
    shown = entries.reduce((best, entry, i) => Math.abs(entry.at - at) < Math.abs(entries[best].at - at) ? i : best, 0);
    pen.strokeStyle = colour("--soft");
    pen.beginPath(); pen.moveTo(x(entries[shown].at), above); pen.lineTo(x(entries[shown].at), height - below); pen.stroke();
  }
  key.replaceChildren(...series.map((line, at) => {
    const item = document.createElement("li");
    item.textContent = line.name + " " + format(shown >= 0 ? values[at][shown] : null);
    item.style.setProperty("--colour", `var(${tints[at]})`);
    item.classList.toggle("dashed", Boolean(line.dashed));
    return item;
  }));
}

// columns: [title, is it a number]; cells: text, or {text, kind, share}
function table(id, columns, rows, nothing = "nothing yet") {
  const row = (tag, cells) => {
    const line = document.createElement("tr");
    cells.forEach((cell, at) => {
      const box = document.createElement(tag), rich = cell !== null && typeof cell === "object";
      box.textContent = rich ? cell.text : cell;
      if (rich && cell.kind) box.classList.add(cell.kind);
      if (rich && cell.share !== undefined) {
        box.classList.add("share");
        box.style.setProperty("--share", (100 * cell.share).toFixed(1) + "%");
      }
      if (columns[at][1]) box.classList.add("n");
      line.append(box);
    });
    return line;
  };
  if (!rows.length) {
    const line = document.createElement("tr"), box = document.createElement("td");
    box.textContent = nothing;
    line.append(box);
    $(id).replaceChildren(line);
    return;
  }
  $(id).replaceChildren(row("th", columns.map(([title]) => title)), ...rows.map((cells) => row("td", cells)));
}

function draw() {
  const { view, rates: now } = history[history.length - 1];
  const then = history[Math.max(0, history.length - 61)].view;
  $("about").textContent = `${view.version} · ${view.config} · up ${duration(view.up)}`;
  document.title = "flowgate · " + (now ? short(now.received) + " packets/s" : "…");
  const open = view.workers.filter((worker) => !worker.balanced);
  const used = sum(view.buffers.map((pool) => pool.in_use)) / Math.max(1, sum(view.buffers.map((pool) => pool.all)));
  const total = (key) => now && sum([...now.ports.values()].map((port) => port[key]));
  const missed = total("missed"), busiest = now ? Math.max(...now.load.map((load) => load || 0)) : null;
  const latency = quantile(view, history.length > 1 ? then : null, 0.99);
  const tiles = [
    ["in, packets/s", short(now && now.received)], ["out, packets/s", short(now && now.sent)],
    ["in", bits(total("rxBits"))], ["out", bits(total("txBits"))],
    ["dropped, packets/s", short(now && now.dropped)],
    ["missed by devices, packets/s", short(missed), missed > 0],
    ["busiest worker", percent(busiest), busiest > 0.9],
    ["99 % of packets took", latency || "–"],
    ["packet buffers in use", percent(used), used > 0.9],
  ];
  if (view.flows) tiles.push(["flows of " + short(view.flows.entries), short(view.flows.now), view.flows.now > 0.9 * view.flows.entries],
    ["new flows/s", short(now && now.fresh)]);
  if (view.routing) tiles.push(["prefixes routed to", short(view.routing.ipv4_prefixes + view.routing.ipv6_prefixes)], ["neighbors", short(view.routing.neighbors)]);
  if (open.length) tiles.push(["accounts that do not close", String(open.length), true]);
  $("tiles").replaceChildren(...tiles.map(([title, text, bad]) => {
    const tile = document.createElement("div"), value = document.createElement("b"), label = document.createElement("span");
    [tile.className, value.textContent, label.textContent] = ["tile" + (bad ? " bad" : ""), text, title];
    tile.append(value, label);
    return tile;
  }));

  // Lines are those that are busiest now; a table has the rest.
  const busy = view.ports.map((port, tint) => [port, tint])
    .sort(([a], [b]) => b.rx_packets + b.tx_packets - a.rx_packets - a.tx_packets).slice(0, LINES / 2).sort((a, b) => a[1] - b[1]);
  const lines = (rx, tx) => busy.flatMap(([port, tint]) => [
    { name: port.port + " in", tint, of: (entry) => (entry.rates.ports.get(port.port) || {})[rx] },
    { name: port.port + " out", tint, dashed: true, of: (entry) => (entry.rates.ports.get(port.port) || {})[tx] }]);
  chart("packets", lines("rx", "tx"), short);
  chart("bits", lines("rxBits", "txBits"), bits, 1000);
  const worst = [...view.drops].sort((a, b) => b.packets - a.packets);
  chart("drops", worst.slice(0, LINES).map((row) => ({ name: row.reason, of: (entry) => entry.rates.drops.get(row.reason) || 0 })), short);
  chart("load", view.workers.filter((worker) => worker.core !== null).slice(0, 8).map((worker, at) => ({ name: "worker " + at, of: (entry) => entry.rates.load[at] })), percent, 1);
  $("flows-card").hidden = !view.flows;
  if (view.flows) chart("flows", [
    { name: "flows", of: (entry) => entry.view.flows && entry.view.flows.now },
    { name: "half-open", of: (entry) => entry.view.flows && entry.view.flows.half_open },
    { name: "new/s", of: (entry) => entry.rates.fresh, dashed: true }], short);

  table("ports", [["port"], ["link"], ["in/s", 1], ["out/s", 1], ["in bit/s", 1], ["out bit/s", 1], ["not taken", 1], ["missed", 1]],
    view.ports.map((port) => {
      const its = now ? now.ports.get(port.port) : {}, dev = port.device;
      const lost = dev ? dev.rx_missed + dev.rx_no_buffer : null;
      return [port.port, { text: port.link, kind: port.link === "up" ? "good" : "bad" }, short(its.rx), short(its.tx),
        short(its.rxBits), short(its.txBits), { text: whole(port.tx_dropped), kind: port.tx_dropped ? "bad" : "" }, { text: whole(lost), kind: lost ? "bad" : "" }];
    }));
  const all = sum(worst.map((row) => row.packets));
  table("reasons", [["reason"], ["packets", 1], ["per s", 1]],
    worst.slice(0, 20).map((row) => [{ text: row.reason, kind: "name", share: row.packets / all }, whole(row.packets), short(now && now.drops.get(row.reason))]), "nothing was dropped");
  const rules = view.rules.most_hit.slice(0, 20), hits = sum(view.rules.most_hit.map((row) => row.packets));
  table("rules", [["rule"], ["action"], ["packets", 1], ["bytes", 1], ["flows", 1], ["per s", 1]],
    rules.map((row) => [{ text: row.rule, kind: "name", share: hits ? row.packets / hits : 0 }, row.action, short(row.packets), bytes(row.bytes), whole(row.flows),
      short(now && now.rules.get(row.stage + "\n" + row.rule))]), "no rules");
  const flows = view.flows && view.flows.states ? [...view.flows.states].sort((a, b) => b.flows - a.flows) : [], every = sum(flows.map((row) => row.flows));
  table("states", [["protocol"], ["state"], ["flows", 1]],
    flows.slice(0, 20).map((row) => [row.protocol, { text: row.state, kind: "name", share: row.flows / every }, whole(row.flows)]), view.flows ? "no flows" : "connections are not tracked");
  $("states-note").textContent = view.flows && view.flows.counted_at ? `as of ${Math.max(0, view.at - view.flows.counted_at).toFixed(0)} s ago` : "";
  talkers(view);
  table("workers", [["worker"], ["core", 1], ["load", 1], ["received", 1], ["sent", 1], ["dropped", 1], ["held", 1], ["account", 1]],
    view.workers.map((worker, at) => [String(worker.worker), worker.core === null ? "–" : String(worker.core), percent(now && now.load[at]), short(worker.account.received), short(worker.account.sent),
      short(worker.account.dropped), whole(worker.account.held), worker.balanced ? { text: "closes", kind: "good" } : { text: "does not close", kind: "bad" }]));
}

function talkers(view) {
  const look = view.talkers;
  if (!look) {
    table("talkers", [], [], view.flows ? "no flows" : "connections are not tracked");
    $("talkers-note").textContent = "";
    return;
  }
  if (!looks.length || looks[looks.length - 1].at !== look.at) looks = [...looks, look].slice(-2);
  const before = looks.length > 1 ? by(looks[0].rows, "address") : new Map();
  const most = Math.max(1, ...look.rows.map((row) => row.bytes));
  table("talkers", [["address"], ["bit/s", 1], ["bytes", 1], ["packets", 1], ["flows", 1]], look.rows.slice(0, 12).map((row) => {
    const speed = rate(row.bytes, (before.get(row.address) || {}).bytes, look.at - looks[0].at);
    return [{ text: row.address, kind: "name", share: row.bytes / most }, short(speed == null ? null : speed * 8), bytes(row.bytes), whole(row.packets), whole(row.flows)];
  }), "no flows");
  const part = look.partial ? `of ${whole(look.seen)} flows, not all` : `of ${whole(look.seen)} flows`;
  $("talkers-note").textContent = `what live flows carried both ways, by who began them; ${part}, as of ${Math.max(0, view.at - look.at).toFixed(0)} s ago`;
}

// --- asking ---
let asking = false;
function status(text, kind) {
  $("live").textContent = text;
  $("live").className = kind;
}

async function ask() {
  if (asking || document.hidden) return;
  asking = true;
  try {
    const token = sessionStorage.getItem("token"), headers = token ? { Authorization: "Bearer " + token } : {};
    const answer = await fetch("v1/overview", { headers, cache: "no-store" });
    $("door").hidden = answer.status !== 401;
    if (!answer.ok) throw new Error("HTTP status " + answer.status);
    const view = await answer.json(), last = history[history.length - 1];
    if (last && view.at <= last.at) return;
    history.push({ at: view.at, view, rates: last ? rates(view, last.view) : null });
    // The first of what is kept serves only to tell the second's rates.
    if (history.length > KEPT + 1) history.shift();
    draw();
    status("live", "good");
  } catch (error) {
    status("no answer: " + error.message, "bad");
  } finally {
    asking = false;
  }
}

const dark = window.matchMedia("(prefers-color-scheme: dark)");
function theme() {
  const chosen = localStorage.getItem("theme") || (dark.matches ? "dark" : "light");
  document.documentElement.classList.toggle("dark", chosen === "dark");
  document.documentElement.style.colorScheme = chosen;
  if (history.length) draw();
}
$("theme").addEventListener("click", () => {
  localStorage.setItem("theme", document.documentElement.classList.contains("dark") ? "light" : "dark");
  theme();
});
dark.addEventListener("change", theme);
$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  ask();
});
for (const canvas of document.querySelectorAll("canvas")) {
  canvas.addEventListener("pointermove", (event) => { hover.set(canvas, event.offsetX / canvas.clientWidth); if (history.length) draw(); });
  canvas.addEventListener("pointerleave", () => { hover.delete(canvas); if (history.length) draw(); });
}
window.addEventListener("resize", () => { if (history.length) draw(); });
document.addEventListener("visibilitychange", ask);
theme();
ask();
setInterval(ask, EVERY);
