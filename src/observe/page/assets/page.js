// The page of a run: asks for the state every two seconds, and for the rest when something in it has moved. No library, no other host.
"use strict";

const EVERY_MS = 2000;
const FIRST_CLUSTERS = 12;
const MORE_CLUSTERS = 24;
const at = (id) => document.getElementById(id);
// What is on the screen, to be drawn anew only when it is another.
const seen = { step: null, cycle: null, snapshot: undefined, lost: null, pictures: undefined };
const MOST_THUMBNAILS = 1000;
const thumbnails = new Map();
let opening = 0;

// The token comes in the fragment, which no server sees, and stays in this tab.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);
}
at("token").value = sessionStorage.getItem("token") || "";
function token() {
  const value = at("token").value;
  sessionStorage.setItem("token", value);
  return value;
}
// Pictures and downloads cannot carry it but in a cookie; where looking takes no token there is none.
const setCookie = () => { document.cookie = `shoal-token-${location.port || 80}=${token()}; path=/; SameSite=Strict`; };

async function ask(path, options = {}) {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  const answer = await fetch(path, { signal: AbortSignal.timeout(60000), ...options, headers });
  if (!answer.ok) throw Object.assign(new Error((await answer.text()) || answer.statusText), { status: answer.status });
  return answer;
}
const json = async (path) => (await ask(path)).json();

const count = (value) => Math.round(value).toLocaleString("en");
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${(s / 3600).toFixed(1)} h`;
  return `${(s / 86400).toFixed(1)} days`;
}
function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${unit ? value.toPrecision(3) : value} ${units[unit]}`;
}

function tile(name, value, more = "") {
  return element("div", {}, element("dt", {}, name), element("dd", {}, value, " ", element("small", {}, more)));
}

function showState(state) {
  document.title = `${state.run} · step ${count(state.step)}`;
  at("run").textContent = state.run;
  const stage = state.stage;
  const what = state.ended ? "ended" : stage ? stage.doing : "not under way here";
  // Only what lasts is announced: a screen reader would never stop.
  at("status").setAttribute("aria-live", state.paused || state.ended || (stage && stage.step_ago_s > 10) ? "polite" : "off");
  at("status").textContent = stage && stage.step_ago_s > 10 ? `${what}, for ${span(stage.for_s)}` : what;
  at("status").classList.remove("bad");

  at("progress").hidden = !state.steps;
  if (state.steps) {
    at("progress").setAttribute("aria-valuemax", state.steps);
    at("progress").setAttribute("aria-valuenow", state.step);
    at("progress").firstElementChild.style.width = `${Math.min(100, (100 * state.step) / state.steps)}%`;
  }
  const next = state.next;
  const parts = [`step ${count(state.step)}${state.steps ? ` of ${count(state.steps)}` : ""}`, `${count(state.images)} images`];
  parts.push(`pass ${state.pass + 1}${state.pass_share === null ? "" : `, ${percent(state.pass_share, 0)} of it`}`);
  if (state.live && !state.paused && next.end_s !== null) parts.push(`${span(next.end_s)} left`);
  at("position").textContent = parts.join(" · ");

  const cycle = state.cycle;
  const soon = (seconds) => (state.live && !state.paused && seconds !== null ? `in ${span(seconds)}` : "–");
  at("tiles").replaceChildren(
    tile("images/s", short(state.images_per_s)),
    tile("loss", short(state.loss), "nats"),
    ...(state.accuracy === null ? [] : [tile("accuracy", percent(state.accuracy))]),
    tile("learning rate", short(state.lr)),
    tile("waiting for data", percent(state.waiting)),
    tile("NMI with the cycle before", cycle ? short(cycle.nmi_prev) : "–"),
    ...(cycle && cycle.nmi_labels !== null ? [tile("NMI with labels", short(cycle.nmi_labels))] : []),
    tile("reassigned", cycle && cycle.reassigned !== null ? percent(cycle.reassigned) : "–"),
    tile("next clustering", soon(next.cycle_s), next.cycle_step === null ? "" : `step ${count(next.cycle_step)}`),
    tile("next snapshot", soon(next.snapshot_s)),
  );
  at("stages-section").hidden = !state.live;
  showStages(state);
  showRanks(state);
  at("alarms-section").hidden = state.alarms.length === 0;
  at("alarms").replaceChildren(...state.alarms.map((alarm) => element("li", {}, `step ${count(alarm.step)}: ${alarm.message}`)));
  at("actions-section").hidden = !state.live;
  at("pause").value = state.paused ? "resume" : "pause";
  at("pause").textContent = state.paused ? "Go on" : "Pause";
}

function showStages(state) {
  at("stages").replaceChildren(...state.stages.map((stage) => {
    const rate = stage.rate === null ? "" : `${short(stage.rate)} ${stage.unit}`;
    const item = element("li", { className: stage.busy ? "busy" : "" }, element("h3", {}, stage.name), element("p", { className: "rate" }, rate));
    if (stage.queue) {
      const { what, length, capacity } = stage.queue;
      const fill = element("span");
      fill.style.width = `${capacity ? Math.min(100, (100 * length) / capacity) : 0}%`;
      const words = `${count(length)} of ${count(capacity)} ${what}`;
      item.append(element("div", { className: "fill", role: "img", "aria-label": words }, fill), element("p", { className: "quiet" }, words));
    }
    item.append(element("p", { className: "quiet" }, stage.text));
    if (stage.lost) item.append(element("p", { className: "lost" }, `${count(stage.lost)} lost`));
    return item;
  }));
  at("waits").textContent = state.waits_for || "";
}

// What a rank lacks is what all of them wait for.
function showRanks(state) {
  const ranks = state.slowest_ranks;
  at("ranks-section").hidden = ranks.length === 0;
  at("stages-title").textContent = ranks.length ? "Stages of rank 0" : "Stages";
  const shown = ranks.length < state.ranks ? ` The ${ranks.length} of ${state.ranks} that waited most:` : "";
  at("ranks-note").textContent = `Between the last two records. Waiting is for data of its own; all wait for whom it takes longest.${shown}`;
  rows(at("ranks"), ["rank", "machine", "waiting", "read", "decoded", "shards"], ranks.map((rank) => [
    count(rank.rank), rank.host, percent(rank.waiting), `${short(rank.megabytes_per_s)} MB/s`, `${short(rank.images_per_s)} images/s`, rank.shards,
  ]));
}

async function showCurves() {
  at("plots").replaceChildren(...(await json("/api/curves")).map(plot));
}

// An empty square, filled by `fillIn` when its photograph has been found.
const photograph = (member) => element("img", { alt: "", "data-id": member.id });

async function fillIn(images) {
  const wanted = [...new Set(images.map((image) => image.dataset.id))].filter((id) => !thumbnails.has(id));
  for (let from = 0; from < wanted.length; from += 100) {
    const found = await json(`/api/thumbnails?ids=${wanted.slice(from, from + 100).join(",")}`);
    if (thumbnails.size > MOST_THUMBNAILS) thumbnails.clear();
    for (const [id, thumbnail] of Object.entries(found)) thumbnails.set(id, thumbnail);
  }
  for (const image of images) {
    const found = thumbnails.get(image.dataset.id);
    if (found) Object.assign(image, { src: found.src, alt: found.key, title: found.key });
    else Object.assign(image, { alt: "not at hand", title: "not found near at hand: its shard is not indexed yet, or cannot be read" });
  }
}

function clusterButton(cluster) {
  const photos = element("div", { className: "photos" }, ...cluster.members.map(photograph));
  const title = element("h3", {}, `cluster ${cluster.cluster}`);
  const caption = element("p", { className: "quiet" }, `${count(cluster.size)} images · ${cluster.description}`);
  const open = element("button", { "aria-haspopup": "dialog" }, title, photos, caption);
  open.addEventListener("click", () => openCluster(cluster, "nearest"));
  return element("li", {}, open);
}

// Shows so many clusters from one on; a list from the first on takes the place of what was there, and keeps the keyboard where it was.
async function showClusters(from, number) {
  const found = await json(`/api/clusters?from=${from}&count=${number}`);
  const list = at("clusters");
  const focused = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  const added = found.clusters.map(clusterButton);
  if (from === 0) list.replaceChildren(...added);
  else list.append(...added);
  if (focused >= 0) list.querySelectorAll("button")[focused]?.focus();
  at("clusters-note").textContent = found.step === null ? "none yet"
    : `${count(found.count)} clusters of ${count(found.samples)} images after step ${count(found.step)}, the largest first`;
  at("more-clusters").hidden = list.children.length >= found.count;
  // Photographs may take a while to be found: nothing else waits for them.
  fillIn(added.flatMap((item) => [...item.querySelectorAll("img")])).catch(() => {});
}
const refreshClusters = () => showClusters(0, Math.max(FIRST_CLUSTERS, at("clusters").children.length));

async function openCluster(cluster, order) {
  const dialog = at("cluster");
  opening += 1;
  const mine = opening;
  at("cluster-title").textContent = `Cluster ${cluster.cluster}`;
  at("cluster-note").textContent = `${count(cluster.size)} images · ${cluster.description}`;
  for (const button of dialog.querySelectorAll("[data-order]")) {
    button.setAttribute("aria-pressed", String(button.dataset.order === order));
    button.onclick = () => openCluster(cluster, button.dataset.order);
  }
  if (!dialog.open) dialog.showModal();
  at("members").replaceChildren();
  try {
    const found = await json(`/api/clusters/${cluster.cluster}?order=${order}`);
    if (mine !== opening) return; // another has been asked for since
    at("members").replaceChildren(...found.map((member) => {
      const words = member.class === null ? member.distance.toFixed(3) : `${member.distance.toFixed(3)} · class ${member.class}`;
      return element("li", {}, photograph(member), element("span", {}, words));
    }));
    await fillIn([...at("members").querySelectorAll("img")]);
  } catch (error) {
    at("cluster-note").textContent = error.message;
  }
}

function rows(table, head, body) {
  table.replaceChildren(
    element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...body.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell))))),
  );
}

async function showLosses(state) {
  const reasons = [...state.losses.map((loss) => ["lost", loss]), ...state.filtered.map((loss) => ["passed over", loss])];
  at("no-losses").hidden = reasons.length > 0;
  at("losses").hidden = reasons.length === 0;
  rows(at("losses"), ["", "reason", "samples"], reasons.map(([kind, loss]) => [kind, loss.reason.replaceAll("_", " "), count(loss.count)]));
  const lines = await json("/api/ledger");
  at("ledger-section").hidden = lines.length === 0;
  const time = (line) => new Date(1000 * line.time).toISOString().slice(0, 19).replace("T", " ");
  rows(at("ledger"), ["time (UTC)", "what", "shard", "sample", "detail"], lines.map((line) => [
    line.time ? time(line) : "", line.reason ?? line.verdict ?? line.kind ?? "", line.shard ?? "", line.key ?? "", line.detail ?? "",
  ]));
}

async function showSnapshots() {
  const found = await json("/api/snapshots");
  rows(at("snapshots"), ["snapshot", "size", "files"], found.map((snapshot) => [
    snapshot.name, bytes(snapshot.bytes),
    element("ul", { className: "files" }, ...snapshot.files.map((file) =>
      element("li", {}, element("a", { href: `/snapshots/${snapshot.name}/${file.name}`, download: "" }, file.name), ` ${bytes(file.bytes)}`))),
  ]));
  at("no-snapshots").hidden = found.length > 0;
  at("snapshots").hidden = found.length === 0;
  at("filters").hidden = found.length === 0;
  at("filters-note").hidden = found.length > 0;
  if (found.length) at("filters").src = `/filters.png?of=${found[0].name}`;
}

// What somebody has drawn into RUN/pictures, each opened by a click.
async function showPictures() {
  const names = await json("/api/pictures");
  if (names.join() === at("pictures").dataset.names) return; // those that are open stay open
  at("pictures").dataset.names = names.join();
  at("pictures-section").hidden = names.length === 0;
  at("pictures").replaceChildren(...names.map((name) => {
    const src = `/pictures/${encodeURIComponent(name)}`;
    return element("details", {}, element("summary", {}, name), element("img", { src, alt: name, loading: "lazy" }));
  }));
}

// Does something when a part of the state is another than the last time it was done; what fails is tried again at the next look.
async function whenMoved(part, value, show) {
  if (seen[part] === value) return;
  try {
    await show();
    seen[part] = value;
  } catch (error) {
    console.warn(part, error.message);
  }
}

async function look() {
  try {
    const state = await json("/api/state");
    if (state.takes_token) setCookie();
    showState(state);
    await whenMoved("step", state.step, showCurves);
    await whenMoved("snapshot", state.last_snapshot, showSnapshots);
    const lost = [...state.losses, ...state.filtered].reduce((sum, loss) => sum + loss.count, 0);
    await whenMoved("lost", lost, () => showLosses(state));
    await whenMoved("cycle", state.cycle ? state.cycle.step : -1, refreshClusters);
    await whenMoved("pictures", Math.floor(Date.now() / 20000), showPictures);
  } catch (error) {
    const gone = error.name === "TypeError" || error.name === "TimeoutError";
    at("status").textContent = gone ? "no answer: the run has ended, or the network is down" : error.message;
    at("status").classList.add("bad");
    if (error.status === 401) at("actions-section").hidden = false; // the token is given there
  }
  setTimeout(look, document.hidden ? 5 * EVERY_MS : EVERY_MS);
}

at("more-clusters").addEventListener("click", () => showClusters(at("clusters").children.length, MORE_CLUSTERS).catch(() => {}));
async function act(action) {
  if (action === "stop" && !confirm("Stop the run? It writes a snapshot first, and goes on from there when it is started again.")) return;
  try {
    at("answer").textContent = await (await ask(`/api/actions/${action}`, { method: "POST" })).text();
  } catch (error) {
    at("answer").textContent = `refused: ${error.message}`;
  }
}
for (const button of at("actions").querySelectorAll("button")) button.addEventListener("click", () => act(button.value));
at("actions").addEventListener("submit", (event) => event.preventDefault()); // Enter in the field gives the token, and does nothing
at("pipeline-section").addEventListener("toggle", async () => {
  if (!at("pipeline-section").open) return;
  try {
    at("pipeline").textContent = await (await ask("/pipeline.toml")).text();
  } catch (error) {
    at("pipeline").textContent = error.message;
  }
});
look();
