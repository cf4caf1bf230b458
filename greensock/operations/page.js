"use strict";
/* The status page. It asks for status.json every second while somebody can see it, and shows what came.

   What comes holds what clients wrote: targets, names of hosts. So no HTML is ever made of it: all goes through
   textContent, with signs that can't be seen, or that turn the order of others, spelled out.

   All counters only grow; what is shown of them is the difference of two answers, by the server's own clock. */

const EVERY = 1000; // ms from one answer to the next question
const PATIENCE = 5000; // ms that an answer may take
const SPAN = 10; // s that rates and latencies are taken over
const STRIDE = 3; // s between two answers that a point of a line comes of, as workers write what they count once a second
const SHOWN = 120; // s that the lines go back
const GAP = 4; // s without an answer that a line is broken by
const NOTHING = "\u2013";
const KEPT_TOKEN = "greensock-token";
const SIGNS = { up: ["\u25cf", "good"], down: ["\u2715", "bad"], ejected: ["\u25b2", "warn"], draining: ["\u25d0", "warn"] };
const NAMES = {
  "1xx": "1xx went on", "2xx": "2xx done", "3xx": "3xx elsewhere", "4xx": "4xx the client's fault", "5xx": "5xx the server's fault",
};
const LOOP = [["turn_wait", "waited for a turn"], ["upcall", "an upcall ran"], ["hub_held", "the loop was held up"]];

const element = (id) => document.getElementById(id);
let polls = []; // answers of the last SPAN seconds, the oldest first
let points = []; // what the lines are drawn of: {now, values}
let timer = 0;
let asking = null;
let silent = ""; // what is wrong, in a word

// -- figures

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function count(value) {
  return value === null || value === undefined ? NOTHING : whole.format(value);
}

function rate(value) {
  if (value === null) return NOTHING;
  return value >= 100 || value === 0 ? whole.format(value) : value.toFixed(value >= 0.1 ? 1 : 2);
}

function short(value) {
  return value.toFixed(value < 1 ? 2 : value < 10 ? 1 : 0);
}

function scaled(value, units, step) {
  let index = 0;
  while (value >= step && index < units.length - 1) {
    value /= step;
    index++;
  }
  return `${index === 0 ? whole.format(value) : short(value)} ${units[index]}`;
}

function bytes(value) {
  return value === null || value === undefined ? NOTHING : scaled(value, ["B", "kB", "MB", "GB", "TB"], 1000);
}

function seconds(value) {
  if (value === null || value === undefined) return NOTHING;
  if (value < 0.0001) return `${(value * 1e6).toFixed(0)} \u00b5s`;
  if (value < 1) return `${short(value * 1e3)} ms`;
  return `${value < 10 ? value.toFixed(2) : value.toFixed(1)} s`;
}

function span(value) {
  value = Math.max(0, value);
  if (value < 60) return `${Math.floor(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)} h`;
}

function clock(at) {
  const then = new Date(at * 1000);
  const time = then.toLocaleTimeString("en-GB");
  return then.toDateString() === new Date().toDateString() ? time : `${then.toLocaleDateString("sv")} ${time}`;
}

function plain(text) {
  if (text === null || text === undefined || text === "") return NOTHING;
  return String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (sign) => `\\u{${sign.codePointAt(0).toString(16)}}`);
}

/** The seconds that a share of what was counted between two histograms took at the most; null if nothing was. */
function quantile(histogram, before, share) {
  if (!histogram || !before || histogram.counts.length !== before.counts.length) return null;
  const counts = histogram.counts.map((each, index) => each - before.counts[index]);
  const total = counts.reduce((sum, each) => sum + each, 0);
  if (total <= 0) return null;
  const rank = share * total;
  let seen = 0;
  for (let index = 0; index < counts.length; index++) {
    if (counts[index] > 0 && seen + counts[index] >= rank) {
      const low = index ? histogram.bounds[index - 1] : 0;
      if (index >= histogram.bounds.length) return low; // above the last bound: no more is known
      return low + ((histogram.bounds[index] - low) * (rank - seen)) / counts[index];
    }
    seen += counts[index];
  }
  return null;
}

/** How much more a second there is of what `pick` finds; null if that can't be said. */
function growth(status, before, pick) {
  if (!before || status.now <= before.now) return null;
  const [now, then] = [pick(status), pick(before)];
  if (now === undefined || then === undefined) return null;
  return Math.max(0, now - then) / (status.now - before.now);
}

/* Each: its name, a figure of two answers, and how that is written. */
const TILES = [
  ["Requests/s", (now, past) => growth(now, past, (s) => s.totals.requests), rate, (s) => `${count(s.totals.in_hand)} in hand`],
  ["Connections", (now) => now.totals.connections, count, (s, past) => `${rate(growth(s, past, (each) => each.totals.accepted))} new/s`],
  ["Half answered in", (now, past) => quantile(now.latency, past && past.latency, 0.5), seconds, () => "p50"],
  ["9 of 10 in", (now, past) => quantile(now.latency, past && past.latency, 0.9), seconds, () => "p90"],
  ["99 of 100 in", (now, past) => quantile(now.latency, past && past.latency, 0.99), seconds, () => "p99"],
  ["5xx/s", (now, past) => growth(now, past, (s) => s.totals.statuses["5xx"]), rate, (s) => `${count(s.totals.statuses["5xx"])} in all`],
  ["Sent/s", (now, past) => growth(now, past, (s) => s.totals.bytes_out), bytes, () => ""],
  ["Received/s", (now, past) => growth(now, past, (s) => s.totals.bytes_in), bytes, () => ""],
];

// -- what is shown

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function made(kind, parent, name) {
  const node = document.createElement(kind);
  if (name) node.className = name;
  parent.append(node);
  return node;
}

/** Show items as rows of a table. A row that stays is kept, so that focus and selection stay, too. */
function fill(id, items, keyOf, cellsOf) {
  const body = element(id);
  const table = body.closest("table");
  const labels = [...table.tHead.rows[0].cells].map((each) => each.textContent);
  body.known = body.known || new Map();
  const old = body.known;
  body.known = new Map();
  items.forEach((item, place) => {
    let key = keyOf(item, place);
    if (body.known.has(key)) key = `${key}\n${place}`;
    const row = old.get(key) || document.createElement("tr");
    old.delete(key);
    body.known.set(key, row);
    row.setAttribute("role", "row");
    if (body.rows[place] !== row) body.insertBefore(row, body.rows[place] || null);
    cellsOf(item).forEach(([value, name = "", put_in = null], column) => {
      let cell = row.cells[column];
      if (!cell) {
        cell = made("td", row);
        cell.setAttribute("role", "cell");
        cell.dataset.label = labels[column];
      }
      const full = value === NOTHING ? `${name} none` : name;
      if (cell.className !== full) cell.className = full;
      if (put_in) put_in(cell, item);
      else put(cell, value);
    });
  });
  for (const row of old.values()) row.remove();
  table.classList.toggle("empty", !items.length);
}

function lineOf(figure) {
  const last = points[points.length - 1].now;
  const top = Math.max(...points.map((each) => each.values[figure] || 0)) || 1;
  let path = "";
  let before = null;
  for (const each of points) {
    const value = each.values[figure];
    if (value !== null) {
      const x = (100 * (each.now - last + SHOWN)) / SHOWN;
      const y = 19 - (18 * value) / top;
      path += `${before !== null && each.now - before < GAP ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`;
      before = each.now;
    }
  }
  return path;
}

function showTiles(status, past) {
  const tiles = element("tiles");
  TILES.forEach(([name, figure, written, more], index) => {
    let tile = tiles.children[index];
    if (!tile) {
      tile = made("div", tiles);
      put(made("dt", tile), name);
      const value = made("dd", tile);
      made("span", value);
      value.append(" ");
      made("small", value);
      const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      picture.setAttribute("viewBox", "0 0 100 20");
      picture.setAttribute("preserveAspectRatio", "none");
      picture.setAttribute("class", "line");
      picture.setAttribute("aria-hidden", "true");
      picture.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
      tile.append(picture);
    }
    put(tile.querySelector("span"), written(figure(status, past)));
    put(tile.querySelector("small"), more(status, past));
    tile.querySelector("path").setAttribute("d", lineOf(index));
  });
}

function showState(cell, server) {
  const [sign, name] = SIGNS[server.state] || ["?", "warn"];
  let word = cell.firstElementChild;
  if (!word) word = made("span", cell);
  if (word.className !== name) word.className = name;
  put(word, `${sign} ${plain(server.state)}${server.since ? ` for ${span(polls[polls.length - 1].now - server.since)}` : ""}`);
}

function showButton(cell, server) {
  let button = cell.firstElementChild;
  if (!button) {
    button = made("button", cell);
    button.type = "button";
    button.addEventListener("click", () => drainOrReady(button));
  }
  button.server = server;
  put(button, server.state === "draining" ? "Put back" : "Drain");
  const label = `${button.textContent} ${plain(server.name)} of ${plain(server.upstream)}`;
  if (button.getAttribute("aria-label") !== label) button.setAttribute("aria-label", label);
}

function showServers(status, past) {
  const servers = status.upstreams.flatMap((each) => each.servers.map((server) => ({ ...server, upstream: each.name })));
  element("servers-section").hidden = !servers.length;
  const then = new Map();
  for (const each of past ? past.upstreams : []) {
    for (const server of each.servers) then.set(`${each.name}\n${server.name}`, server);
  }
  const more = (server, name) => {
    const before = then.get(`${server.upstream}\n${server.name}`);
    return before ? Math.max(0, server[name] - before[name]) / (status.now - past.now) : null;
  };
  fill("servers", servers, (each) => `${each.upstream}\n${each.name}`, (each) => [
    [plain(each.name), "head"], [plain(each.upstream)], [each.state, "whole", showState], [plain(each.why), "full"],
    [rate(more(each, "requests")), "number"], [rate(more(each, "errors")), "number"],
    [count(each.in_hand), "number"], [count(each.connections), "number"], [count(each.weight), "number"],
    ["", "act full", showButton],
  ]);
  put(element("queued"), status.upstreams.map((each) => {
    const up = each.servers.filter((server) => server.state === "up").length;
    return `${plain(each.name)}: ${up} of ${each.servers.length} up${each.queued ? `, ${count(each.queued)} requests wait for a server` : ""}`;
  }).join(" \u00b7 "));
}

function showRequests(id, requests) {
  element(`no-${id}`).hidden = requests.length > 0;
  fill(id, requests, (_, place) => place, (each) => [
    [clock(each.at), "whole"], [plain(each.status), each.status >= 500 ? "bad" : ""], [plain(each.reason)],
    [`${plain(each.method)} ${plain(each.host)} ${plain(each.target)}`, "request"], [seconds(each.seconds), "number"],
    [plain(each.client)], [plain(each.server)],
  ]);
}

/** What was counted by reason, the most first. */
function listed(counts) {
  return Object.entries(counts || {}).filter(([, total]) => total > 0).sort((one, other) => other[1] - one[1]);
}

function show(status) {
  const last = polls[polls.length - 1];
  if (last && (last.started !== status.started || last.totals.requests > status.totals.requests || last.now > status.now)) {
    polls = []; // another server than before: its counters began anew
    points = [];
  }
  const before = polls.filter((each) => each.now <= status.now - STRIDE + 0.1).pop() || polls[0];
  polls.push(status);
  while (polls.length > 2 && polls[0].now < status.now - SPAN - 0.5) polls.shift();
  const past = polls.length > 1 ? polls[0] : null;
  points.push({ now: status.now, values: TILES.map(([, figure]) => figure(status, before)) });
  while (points[0].now < status.now - SHOWN) points.shift();

  put(element("name"), plain(status.name));
  const workers = status.workers.length;
  put(element("about"), `${plain(status.version)}, up ${span(status.now - status.started)}, ${workers} ${workers === 1 ? "worker" : "workers"}`);
  put(element("state"), status.is_draining ? "\u25d0 draining" : "\u25cf serving");
  element("state").className = `badge ${status.is_draining ? "warn" : "good"}`;
  put(element("when"), `as of ${clock(status.now)}`);
  showTiles(status, past);
  showServers(status, past);
  fill("statuses", Object.entries(status.totals.statuses), ([name]) => name, ([name, total]) => [
    [NAMES[name] || plain(name)], [rate(growth(status, past, (each) => each.totals.statuses[name])), "number"], [count(total), "number"],
  ]);
  const refused = listed(status.totals.refused);
  element("no-refused").hidden = refused.length > 0;
  fill("refused", refused, ([name]) => name, ([name, total]) => [
    [plain(name)], [rate(growth(status, past, (each) => each.totals.refused[name] || 0)), "number"], [count(total), "number"],
  ]);
  const failures = listed(status.totals.failures);
  element("failures-section").hidden = !failures.length;
  fill("failures", failures, ([name]) => name, ([name, total]) => [
    [plain(name)], [rate(growth(status, past, (each) => each.totals.failures[name] || 0)), "number"], [count(total), "number"],
  ]);
  fill("loop", LOOP.filter(([name]) => status[name]), ([name]) => name, ([name, words]) => [
    [words], ...[0.5, 0.99].map((share) => [seconds(quantile(status[name], past && past[name], share)), "number"]),
  ]);
  put(element("errors"), status.totals.errors ? `${count(status.totals.errors)} upcalls failed: the log has each.` : "");
  const then = new Map((past ? past.workers : []).map((each) => [each.pid, each]));
  fill("workers", status.workers, (each) => each.pid, (each) => {
    const before = then.get(each.pid);
    const more = (name) => (before ? Math.max(0, each[name] - before[name]) / (status.now - past.now) : null);
    const cpu = more("cpu_seconds");
    return [
      [String(each.pid), "head"], [plain(each.state), each.state === "serving" ? "" : "warn"], [count(each.connections), "number"],
      [rate(more("requests")), "number"], [count(each.in_hand), "number"],
      [cpu === null ? NOTHING : `${(100 * cpu).toFixed(cpu < 0.1 ? 1 : 0)} %`, "number"], [bytes(each.memory_bytes), "number"],
    ];
  });
  showRequests("failed", status.failed);
  showRequests("slowest", status.slowest);
  element("main").hidden = false;
}

// -- asking

function trouble(text, word) {
  if (text && silent !== word) {
    silent = word;
    const shown = polls.length ? " What is shown here is from before." : "";
    put(element("trouble"), `Since ${clock(Date.now() / 1000)} ${text} It is asked again every second.${shown}`);
    put(element("state"), `\u2715 ${word}`);
    element("state").className = "badge bad";
  } else if (!text && silent) {
    silent = "";
    put(element("trouble"), "");
  }
  document.title = (silent ? `${silent} \u2013 ` : "") + element("name").textContent;
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || asking) return;
  const mine = (asking = new AbortController());
  let late = false;
  const watch = setTimeout(() => {
    late = true;
    mine.abort();
  }, PATIENCE);
  try {
    const answer = await fetch("status.json", { cache: "no-store", signal: mine.signal });
    if (!answer.ok) throw new Error(`it answers ${answer.status}.`);
    const status = await answer.json();
    try {
      show(status);
      trouble("", "");
    } catch (error) {
      trouble(`what the server says is not understood (${error.message}): is this page of another version? Load it anew.`, "not understood");
    }
  } catch (error) {
    if (!document.hidden || late) {
      const why = late ? `nothing came within ${PATIENCE / 1000} s.` : error instanceof TypeError ? "it can't be reached." : error.message;
      trouble(`the server does not answer: ${why}`, "no answer");
    }
  } finally {
    clearTimeout(watch);
    asking = null;
    if (!document.hidden) timer = setTimeout(poll, EVERY);
  }
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (document.hidden) {
    if (asking) asking.abort();
  } else {
    timer = setTimeout(poll, 0); // behind what an aborted question still does
  }
});

// -- draining

/** Ask something; the token that was typed, "" where none is wanted, or null if the answer is no. */
function ask(title, text, yes, needsToken) {
  const dialog = element("ask");
  const form = element("ask-form");
  put(element("ask-title"), title);
  put(element("ask-text"), text);
  put(element("ask-yes"), yes);
  element("ask-token-line").hidden = element("ask-hint").hidden = !needsToken;
  element("token").required = needsToken;
  element("token").value = "";
  return new Promise((settle) => {
    let given = null;
    form.onsubmit = (event) => {
      event.preventDefault();
      given = element("token").value.trim();
      dialog.close();
    };
    element("ask-no").onclick = () => dialog.close();
    dialog.onclose = () => {
      element("token").value = "";
      settle(given);
    };
    dialog.showModal();
  });
}

function keepToken(token) {
  if (token) sessionStorage.setItem(KEPT_TOKEN, token);
  else sessionStorage.removeItem(KEPT_TOKEN);
  element("forget").hidden = !token;
}

async function drainOrReady(button) {
  if (button.hasAttribute("aria-disabled")) return;
  const { upstream, name, state } = button.server;
  const word = state === "draining" ? "ready" : "drain";
  const title = `${word === "drain" ? "Drain" : "Put back"} ${plain(name)} of ${plain(upstream)}`;
  const group = polls[polls.length - 1].upstreams.find((each) => each.name === upstream);
  const isLast = word === "drain" && state === "up" && group.servers.filter((each) => each.state === "up").length === 1;
  let token = sessionStorage.getItem(KEPT_TOKEN);
  if (isLast || !token) {
    const text = isLast ? "It is the last one that is up: without it requests fail." : "Who may do this has the operators' token.";
    const given = await ask(title, text, word === "drain" ? "Drain" : "Put back", !token);
    if (given === null) return;
    token = token || given;
    if (!token) return;
  }
  button.setAttribute("aria-disabled", "true"); // one that is disabled would lose the focus
  try {
    const answer = await fetch(word, {
      method: "POST",
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
      body: JSON.stringify({ upstream, server: name }),
      signal: AbortSignal.timeout(PATIENCE),
    });
    if (answer.ok) {
      keepToken(token);
      put(element("told"), word === "drain" ? `${plain(name)} gets no new requests.` : `${plain(name)} gets requests again.`);
    } else {
      if (answer.status === 401 || answer.status === 403) keepToken("");
      const said = await answer.json().catch(() => ({}));
      put(element("told"), `Not done: ${title}. The server says ${answer.status}: ${plain(said.error)}`);
    }
  } catch (error) {
    put(element("told"), `Not done: ${title}. ${plain(error.message)}`);
  } finally {
    button.removeAttribute("aria-disabled");
    poll();
  }
}

element("forget").addEventListener("click", () => {
  keepToken("");
  put(element("told"), "The token is forgotten.");
});
keepToken(sessionStorage.getItem(KEPT_TOKEN) || "");
poll();
