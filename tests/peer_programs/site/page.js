"use strict";

const LARGE = new Uint8Array(3 << 20).map((_, place) => place * 7 + (place >> 8));

async function digest(bytes) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, byte => byte.toString(16).padStart(2, "0")).join("");
}

async function upload() {
  const form = new FormData();
  form.append("text", "grün");
  form.append("file", new Blob([LARGE]), "large.bin");
  const answer = await (await fetch("/app/upload", { method: "POST", body: form })).json();
  return [answer.fields.text, answer.files.file === await digest(LARGE)];
}

async function stream() {
  let pieces = 0, bytes = 0;
  for (const reader = (await fetch("/app/numbers/5000")).body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return [pieces > 0, bytes];
    pieces += 1;
    bytes += value.length;
  }
}

function events() {
  return new Promise((resolve, reject) => {
    const seen = [], source = new EventSource("/app/events");
    source.onerror = reject;
    source.onmessage = event => {
      seen.push(event.data);
      if (seen.length === 3) {
        source.close();
        resolve(seen);
      }
    };
  });
}

async function atOnce() {
  const answers = await Promise.all(Array.from({ length: 60 }, (_, n) => fetch(`/text.txt?${n}`)));
  const texts = await Promise.all(answers.map(answer => answer.text()));
  return [new Set(texts).size, texts[0].length];
}

async function cookies() {
  const answer = await fetch("/app/login?user=anna");
  return [answer.redirected, new URL(answer.url).pathname, await answer.text(), document.cookie];
}

async function range() {
  const answer = await fetch("/text.txt", { headers: { Range: "bytes=5-9" } });
  return [answer.status, await answer.text()];
}

function echo() {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`ws://${location.host}/ws/echo`, ["chat.v1", "chat.v2"]);
    const seen = [];
    socket.binaryType = "arraybuffer";
    socket.onerror = () => reject(new Error("the WebSocket failed"));
    socket.onopen = () => {
      seen.push(socket.protocol);
      socket.send("hellö");
      socket.send(LARGE.subarray(0, 1 << 20));
    };
    socket.onmessage = async ({ data }) => {
      if (typeof data === "string") {
        seen.push(data);
      } else {
        seen.push(await digest(data) === await digest(LARGE.subarray(0, 1 << 20)));
        socket.close(4005, "enough");
      }
    };
    socket.onclose = ({ code, wasClean }) => resolve([...seen, code, wasClean]);
  });
}

(async () => {
  const result = {};
  for (const task of [upload, stream, events, atOnce, cookies, range, echo]) {
    result[task.name] = await task();
  }
  document.getElementById("result").textContent = JSON.stringify(result);
  document.title = "done";
})();
