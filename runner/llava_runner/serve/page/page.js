// The page: it joins the server, the store, and what is shown.

import { clearComposer, focusComposer, focusStop, listen, setComposer } from "./composer.js";
import { askForKey, confirmDeletion, showPackage } from "./dialogs.js";
import { dataUrl } from "./images.js";
import { ServerError, ask, hasKey, packageFacts, useKey, verifyPackage } from "./server.js";
import { closeSidebar, showConversations } from "./sidebar.js";
import { newId, openStore } from "./store.js";
import { addTurn, showAnswer, showTurns } from "./turns.js";

const SAVE_EVERY = 1000; // milliseconds, while an answer comes
const NEAR_THE_END = 120; // pixels; who reads further up is not scrolled
const RETRY_TEMPERATURE = 0.7; // at 0 a finished answer would come again

const store = await openStore();
const running = new Map(); // from the id of a conversation to {conversation, controller}
const status = document.getElementById("status");
let current = newConversation();
let facts = {}; // what the server says about its package

function newConversation() {
  return { id: newId(), title: "New conversation", thumbnail: null, asked: 0, turns: [] };
}

/** Wait until something is kept. Say so where the browser has no room for it. */
async function kept(saving) {
  try {
    await saving;
  } catch {
    document.getElementById("storage-note").textContent = "This browser has no room to keep conversations.";
  }
}

async function refreshList() {
  const conversations = await store.list();
  showConversations(conversations, { current: current.id, actions: { open: openListed, remove } });
}

function refresh() {
  document.getElementById("title").textContent = current.title;
  document.title = current.turns.length > 0 ? `${current.title} – llava` : "llava";
  document.getElementById("welcome").hidden = current.turns.length > 0;
  document.body.classList.toggle("empty", current.turns.length === 0);
  setComposer({ running: running.has(current.id), empty: current.turns.length === 0 });
}

function isNearTheEnd() {
  const { scrollHeight, scrollTop, clientHeight } = document.documentElement;
  return scrollHeight - scrollTop - clientHeight < NEAR_THE_END;
}

function scrollToEnd() {
  scrollTo(0, document.documentElement.scrollHeight);
}

const actions = {
  imageOf: (id) => store.image(id),
  copy: (turn, button) => copy(turn.answer.text, button),
  retry,
};

async function openConversation(conversation) {
  current = conversation;
  for (const { answer } of running.has(current.id) ? [] : current.turns) {
    if (answer.state === "running") answer.state = "stopped"; // the page was closed meanwhile
  }
  clearComposer();
  refresh();
  closeSidebar();
  await Promise.all([showTurns(current.turns, actions), refreshList()]);
  scrollToEnd();
  focusComposer();
}

async function openListed({ id }) {
  // One that is being answered is in memory, and newer there.
  await openConversation(running.get(id)?.conversation ?? (await store.get(id)) ?? newConversation());
}

async function remove(conversation) {
  if (!(await confirmDeletion(conversation))) return;
  running.get(conversation.id)?.controller.abort();
  running.delete(conversation.id);
  await store.remove(conversation);
  status.textContent = "Deleted.";
  if (conversation.id === current.id) await openConversation(newConversation());
  else await refreshList();
  document.getElementById("new").focus();
}

/** Return the messages of a conversation up to a question, as OpenAI's API takes them. */
async function messagesUpTo(conversation, last) {
  const messages = [];
  let image = null; // stays for the next question where one got no answer
  for (const turn of conversation.turns) {
    image = turn.question.image ?? image;
    if (turn !== last && turn.answer.text === "") continue;
    const content = [{ type: "text", text: turn.question.text }];
    const blob = image && (await store.image(image.id));
    if (blob) content.unshift({ type: "image_url", image_url: { url: await dataUrl(blob) } });
    messages.push({ role: "user", content });
    image = null;
    if (turn === last) return messages;
    messages.push({ role: "assistant", content: turn.answer.text });
  }
  return messages;
}

function take(answer, { choices, usage, timings }) {
  const choice = choices?.[0];
  answer.text += choice?.delta?.content ?? "";
  answer.finish = choice?.finish_reason ?? answer.finish;
  answer.usage = usage ?? answer.usage;
  answer.timings = timings ?? answer.timings;
  answer.wait = "";
}

function show(turn) {
  const follow = isNearTheEnd();
  showAnswer(turn);
  if (follow) scrollToEnd();
}

/** Return what `action` returns. Where the server wants an API key, ask for it and do the action again. */
async function withKey(action) {
  for (;;) {
    try {
      return await action();
    } catch (error) {
      if (error.status !== 401) throw error;
      const key = await askForKey({ wasWrong: hasKey() });
      if (key === "") throw error;
      useKey(key);
    }
  }
}

/** Read the whole answer into a turn. */
async function readAnswer(conversation, turn, signal) {
  const { answer } = turn;
  const messages = await messagesUpTo(conversation, turn);
  const body = { model: facts.model ?? "llava", messages, temperature: answer.temperature };
  const onBusy = (seconds) => {
    answer.wait = `The server is busy with other questions. Asking again in ${seconds} s`;
    show(turn);
  };
  let saved = Date.now();
  for await (const chunk of ask(body, { signal, onBusy })) {
    take(answer, chunk);
    show(turn);
    if (Date.now() - saved > SAVE_EVERY) {
      saved = Date.now();
      await kept(store.save(conversation));
    }
  }
}

async function answerTo(conversation, turn, temperature) {
  const controller = new AbortController();
  running.set(conversation.id, { conversation, controller });
  turn.answer = { text: "", state: "running", temperature };
  conversation.asked = Date.now();
  show(turn);
  refresh();
  await kept(store.save(conversation));
  await refreshList();
  status.textContent = "Answering.";
  try {
    await withKey(() => readAnswer(conversation, turn, controller.signal));
    turn.answer.state = "done";
  } catch (error) {
    turn.answer.state = controller.signal.aborted ? "stopped" : "failed";
    turn.answer.problem = error instanceof ServerError ? error.message : "This page made a mistake.";
    if (!controller.signal.aborted && !(error instanceof ServerError)) console.error(error);
  }
  turn.answer.wait = "";
  show(turn);
  if (!running.has(conversation.id)) return; // deleted meanwhile
  running.delete(conversation.id);
  await kept(store.save(conversation));
  refresh();
  if (conversation === current) status.textContent = spoken(turn.answer);
}

function spoken({ state, text, problem }) {
  if (state === "failed") return problem;
  return `${state === "stopped" ? "Stopped" : "Answer"}: ${text}`;
}

async function onAsk({ text, image }) {
  const turn = { id: newId(), question: { text, image: null }, answer: { text: "", state: "running" } };
  const conversation = current;
  if (image) {
    turn.question.image = { id: newId(), name: image.name };
    await kept(store.saveImage(turn.question.image.id, image.blob));
  }
  if (conversation.turns.length === 0) conversation.title = text.length > 60 ? `${text.slice(0, 59)}…` : text;
  conversation.thumbnail ??= image?.thumbnail ?? null;
  conversation.turns.push(turn);
  refresh();
  await addTurn(turn, actions);
  scrollToEnd();
  await answerTo(conversation, turn, 0);
}

async function retry(turn) {
  if (running.has(current.id)) return;
  const answered = answerTo(current, turn, turn.answer.state === "done" ? RETRY_TEMPERATURE : 0);
  focusStop(); // the button that was pressed is gone
  await answered;
}

/** Copy a text, also on plain http, where browsers give no clipboard to scripts. */
async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  status.textContent = "Copied.";
  const label = button.querySelector("span");
  if (label) label.textContent = "Copied";
  if (label) setTimeout(() => (label.textContent = "Copy"), 1500);
}

async function loadFacts() {
  try {
    facts = await withKey(packageFacts);
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    facts = { verification: { text: error.message } };
  }
  document.getElementById("package-model").textContent = facts.model ?? "Package";
  const recipe = document.getElementById("package-recipe");
  recipe.textContent = facts.recipe?.name ?? "";
  recipe.hidden = recipe.textContent === "";
}

/** Show the newest conversation, and listen. */
async function begin() {
  const conversations = await store.list();
  if (!store.isKept) document.getElementById("storage-note").textContent = "This browser keeps nothing: gone on reload.";
  listen({ onAsk, onStop: () => running.get(current.id)?.controller.abort() });
  document.getElementById("new").addEventListener("click", () => openConversation(newConversation()));
  document.getElementById("package").addEventListener("click", async () => {
    if (!facts.model) await loadFacts();
    showPackage(facts, { verify: () => withKey(verifyPackage) });
  });
  document.querySelector(".command button").addEventListener("click", (event) => {
    copy(document.getElementById("verify-command").textContent, event.currentTarget);
  });
  await openConversation(conversations[0] ?? current);
  loadFacts();
}

await begin();
document.body.classList.add("ready");
