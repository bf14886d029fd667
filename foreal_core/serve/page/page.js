// One question, asked twice: the pair and its leader alone. All text goes in as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const THINK_END = "</think>";
let pair = null; // the entry of /v1/models
let running = null; // an AbortController while something is written

function headers() {
  const key = $("key").value;
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function load() {
  const answer = await fetch("v1/models", { headers: headers() });
  if (!answer.ok) {
    const error = new Error((await answer.json()).error.message);
    error.passes = answer.status === 503; // the models are being loaded
    throw error;
  }
  pair = (await answer.json()).data[0];
  const { models, settings } = pair.foreal;
  $("pair").textContent = `${pair.id}: ${models.leader} leads, ${models.draft} drafts`;
  for (const slider of document.querySelectorAll("[data-setting]")) {
    slider.value = settings[slider.dataset.setting];
    shown(slider);
  }
}

async function greet() {
  try {
    await load();
  } catch (error) {
    $("pair").textContent = error.message;
    if (error.passes) setTimeout(greet, 1000);
  }
}

function shown(slider) {
  slider.parentElement.querySelector("output").textContent = slider.value;
}

// What is known of one answer while it is written, and of its cost once it is.
class Bill {
  constructor(table) {
    this.body = table.querySelector("tbody");
    this.start = performance.now();
    this.tokens = { leader: 0, draft: 0 };
    this.sentences = 0;
    this.led = 0;
    this.handoffs = 0;
    this.first = null;
    this.record = null;
    this.show();
  }

  count(token) {
    this.first ??= performance.now() - this.start;
    this.tokens[token.author] += 1;
  }

  show() {
    const { leader, draft } = this.tokens;
    const written = leader + draft;
    const record = this.record;
    const each = pair.foreal.cost;
    const known = each.leader.flops !== null && each.draft.flops !== null;
    const estimate = {
      total: leader * each.leader.flops + draft * each.draft.flops,
      leader_only: written * each.leader.flops,
    };
    const seconds = (performance.now() - this.start) / 1000;
    const rows = [
      ["tokens", written],
      ["by the leader", leader],
      ["by the draft", draft],
      ["led sentences", `${this.led} of ${this.sentences}`],
      ["hand-offs", this.handoffs],
      ["first token", this.first === null ? "…" : `${(this.first / 1000).toFixed(2)} s`],
      ["tokens per second", written && seconds ? (written / seconds).toFixed(0) : "…"],
      ["Of what the leader needs for as many tokens:", ""],
      ["written FLOPs", record ? amount(record.flops_written) : written && known ? `~ ${amount(estimate)}` : "…"],
      ["computed FLOPs", amount(record?.flops)],
      ["weight bytes", amount(record?.weight_bytes)],
    ];
    this.body.replaceChildren(...rows.map(([name, value]) => {
      const row = document.createElement("tr");
      row.append(element("th", null, name));
      row.firstChild.scope = "row";
      if (value === "") row.firstChild.colSpan = 2;
      else row.append(element("td", null, String(value)));
      return row;
    }));
  }

  close(record) {
    this.record = record;
    this.tokens = { leader: record.leader_tokens, draft: record.draft_tokens };
    [this.sentences, this.led, this.handoffs] = [record.sentences, record.led_sentences, record.handoffs];
    this.show();
  }
}

// A count of the bill and what it is of the leader's for as many tokens.
function amount(count) {
  if (count?.total === null) return "unknown";
  if (!count?.total) return "…";
  const tier = Math.min(Math.floor(Math.log10(count.total) / 3), 6);
  const short = Number((count.total / 1000 ** tier).toPrecision(3));
  const share = ((100 * count.total) / count.leader_only).toFixed(0);
  return `${short} ${["", "k", "M", "G", "T", "P", "E"][tier]}, ${share} %`;
}

function element(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.textContent = text;
  return made;
}

// A text by its authors: runs of one author, marks where a sentence begins and where it is handed over.
class Text {
  constructor(box, bill, marked) {
    this.box = box;
    this.bill = bill;
    this.marked = marked; // whether gates mean anything here
    this.sentence = -1;
    this.author = null;
    this.run = null;
    this.tail = "";
    this.answers = false; // the answer has begun, so far with blank lines alone
    box.replaceChildren();
  }

  add(token) {
    this.bill.count(token);
    const begins = token.sentence !== this.sentence;
    if (begins) {
      this.sentence = token.sentence;
      this.bill.sentences += 1;
      const led = token.author === "leader";
      this.bill.led += led;
      if (this.marked) {
        this.mark("gate", led ? "◆" : "◇", led ? "The leader leads." : "The draft writes.");
      }
    } else if (this.author === "leader" && token.author === "draft") {
      this.bill.handoffs += 1;
      this.mark("handoff", "⇢", "Hand-off to the draft.");
    }
    const blank = this.answers && token.text.trim() === "";
    if (this.answers && !blank) {
      this.answers = false;
      this.run = null;
    }
    if (this.run === null || token.author !== this.author) {
      this.author = token.author;
      this.run = element("span", token.author, "");
      this.run.title = token.author;
      if (blank) this.run.dataset.blank = "";
      this.box.append(this.run);
    }
    this.run.append(token.text);
    this.tail = (this.tail + token.text).slice(-THINK_END.length - 64);
    if (this.tail.includes(THINK_END)) {
      this.tail = "";
      this.box.append(element("span", "answer", "the answer"));
      this.run = null;
      this.answers = true;
    }
  }

  mark(kind, sign, meaning) {
    const made = element("span", kind, sign);
    made.title = meaning;
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", meaning);
    this.box.append(made);
    this.run = null;
  }

  fail(message) {
    this.box.append(element("span", "error", message));
  }
}

// The events of an answer, as objects; ends at [DONE].
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += decoder.decode(value, { stream: true });
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function write(section, settings, marked) {
  const bill = new Bill(section.querySelector(".bill"));
  const text = new Text(section.querySelector(".text"), bill, marked);
  section.dataset.state = "writing";
  try {
    const answer = await fetch("v1/chat/completions", {
      method: "POST",
      signal: running.signal,
      headers: { "content-type": "application/json", ...headers() },
      body: JSON.stringify({
        model: pair.id,
        messages: [{ role: "user", content: $("question").value }],
        stream: true,
        foreal_tokens: true,
        max_tokens: Number($("limit").value),
        seed: Number($("seed").value),
        ...settings,
      }),
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const event of events(answer.body)) {
      if (event.error) throw new Error(event.error.message);
      const box = text.box;
      const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 8; // not if the reader scrolled up
      for (const token of event.foreal?.tokens ?? []) text.add(token);
      if (event.foreal?.completion_tokens !== undefined) bill.close(event.foreal);
      else bill.show();
      if (follows) box.scrollTop = box.scrollHeight;
    }
    section.dataset.state = "done";
  } catch (error) {
    const left = error.name === "AbortError";
    section.dataset.state = left ? "stopped" : "failed";
    if (!left) text.fail(error.message);
  }
  return bill.tokens.leader + bill.tokens.draft;
}

async function ask() {
  if (running) return;
  if (!$("ask").reportValidity()) return;
  running = new AbortController();
  $("go").disabled = true;
  $("stop").disabled = false;
  $("status").textContent = "Writing …";
  try {
    if (!pair) await load();
    const settings = {};
    for (const slider of document.querySelectorAll("[data-setting]")) {
      settings[slider.dataset.setting] = Number(slider.value);
    }
    const compare = $("compare").checked;
    $("leader-pane").hidden = !compare;
    const both = [write($("pair-pane"), settings, true)];
    if (compare) both.push(write($("leader-pane"), { policy: "leader" }, false));
    const counts = await Promise.all(both);
    const states = [...document.querySelectorAll("section:not([hidden])")].map((one) => one.dataset.state);
    const word = states.includes("failed") ? "Failed" : states.includes("stopped") ? "Stopped" : "Done";
    $("status").textContent = `${word}: ${counts.join(" and ")} tokens.`;
  } catch (error) {
    $("status").textContent = error.message;
  } finally {
    running = null;
    $("go").disabled = false;
    $("stop").disabled = true;
  }
}

function stop() {
  running?.abort();
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("stop").addEventListener("click", stop);
$("compare").addEventListener("change", () => { $("leader-pane").hidden = !$("compare").checked; });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); ask(); }
  if (event.key === "Escape") stop();
});
for (const slider of document.querySelectorAll("[data-setting]")) {
  slider.addEventListener("input", () => shown(slider));
  shown(slider);
}
$("key").addEventListener("change", greet);
greet();
