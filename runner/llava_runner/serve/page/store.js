// Keeps conversations and their images in the browser (IndexedDB), or in memory where it gives no storage.
//
// A conversation is {id, title, thumbnail, asked, turns: [{question: {text, image}, answer}]}. `image` is null or
// {id, name}; the bytes are apart, a Blob for each id, so that saving a conversation while an answer comes is cheap.

const NAME = "llava";
const VERSION = 1;

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function done(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
}

function imageIds(conversation) {
  return conversation.turns.map((turn) => turn.question.image?.id).filter(Boolean);
}

class BrowserStore {
  isKept = true;
  recent = new Map(); // images of this page, which can be asked about even if there is no room to keep them

  constructor(database) {
    this.database = database;
  }

  async list() {
    const all = await finished(this.database.transaction("conversations").objectStore("conversations").getAll());
    return all.sort((a, b) => b.asked - a.asked);
  }

  get(id) {
    return finished(this.database.transaction("conversations").objectStore("conversations").get(id));
  }

  async save(conversation) {
    const transaction = this.database.transaction("conversations", "readwrite");
    transaction.objectStore("conversations").put(conversation);
    await done(transaction);
  }

  async image(id) {
    return this.recent.get(id) ?? (await finished(this.database.transaction("images").objectStore("images").get(id)));
  }

  async saveImage(id, blob) {
    this.recent.set(id, blob);
    const transaction = this.database.transaction("images", "readwrite");
    transaction.objectStore("images").put(blob, id);
    await done(transaction);
  }

  async remove(conversation) {
    const transaction = this.database.transaction(["conversations", "images"], "readwrite");
    transaction.objectStore("conversations").delete(conversation.id);
    for (const id of imageIds(conversation)) {
      this.recent.delete(id);
      transaction.objectStore("images").delete(id);
    }
    await done(transaction);
  }
}

class MemoryStore {
  isKept = false;
  conversations = new Map();
  images = new Map();

  async list() {
    return [...this.conversations.values()].sort((a, b) => b.asked - a.asked);
  }

  async get(id) {
    return this.conversations.get(id);
  }

  async save(conversation) {
    this.conversations.set(conversation.id, conversation);
  }

  async image(id) {
    return this.images.get(id);
  }

  async saveImage(id, blob) {
    this.images.set(id, blob);
  }

  async remove(conversation) {
    this.conversations.delete(conversation.id);
    for (const id of imageIds(conversation)) this.images.delete(id);
  }
}

/** Open the store of this browser. One that keeps nothing beyond the page is returned where there is none. */
export async function openStore() {
  try {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("images");
    };
    return new BrowserStore(await finished(request));
  } catch {
    return new MemoryStore();
  }
}

/** Return a new name that no other conversation or image has. `crypto.randomUUID` is missing on plain http. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
