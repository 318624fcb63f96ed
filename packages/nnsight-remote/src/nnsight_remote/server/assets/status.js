// The status page asks with the reader's key, which stays in this tab, and shows what it gets as text.
"use strict";

const at = (id) => document.getElementById(id);
let key = sessionStorage.getItem("key") || "";
let timer = 0;

async function ask(path) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store" });
  const said = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(said.message), { status: answer.status });
  return said;
}

function fill(table, rows) {
  const body = at(table).tBodies[0];
  body.replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      if (text === "failed") cell.className = "failed";
      return cell;
    }));
    return row;
  }));
}

function seconds(from, to) {
  return from === null ? "" : `${((to ?? Date.now() / 1000) - from).toFixed(1)} s`;
}

async function show() {
  clearTimeout(timer);
  try {
    const [status, jobs] = await Promise.all([ask("status"), ask("jobs?count=50")]);
    at("ask").hidden = true;
    at("shown").hidden = false;
    at("summary").textContent = `${status.queued} waiting, ${status.running} running; nnsight-remote ${status.version}`
      + (status.trusted ? "; blocks run unconfined" : "");
    fill("models", status.models.map((m) => [m.name, m.problem ? `${m.state}: ${m.problem}` : m.state, `${m.queued}`,
      { fork: "a process of its own", resident: "the model's process" }[m.isolation] ?? ""]));
    fill("jobs", jobs.map((j) => [j.id.slice(0, 8), j.user, j.model,
      j.position === null ? j.state : `${j.state}, ${j.position} before it`,
      new Date(j.submitted * 1000).toLocaleString(), seconds(j.started, j.finished), j.failure?.message ?? ""]));
    at("none").hidden = jobs.length > 0;
  } catch (error) {
    at("shown").hidden = true;
    at("ask").hidden = error.status !== 401;
    at("summary").textContent = error.status === 401 && !key ? "This server wants a key." : error.message;
    if (error.status === 401) return;
  }
  timer = setTimeout(show, 2000);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  sessionStorage.setItem("key", key);
  show();
});
show();
