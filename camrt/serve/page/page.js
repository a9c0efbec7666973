// Sends an image to POST /explain: once for the classes, and once for the picture of each class that is looked at.
const at = (id) => document.getElementById(id);
const [model, drop, file, picture, state, classes] = ["model", "drop", "file", "picture", "state", "classes"].map(at);
let image = null;
let asked = 0; // answers to an older question are dropped

function say(text, isError = false) {
  state.textContent = text;
  state.classList.toggle("error", isError);
}

async function ask(parameters) {
  const body = new FormData();
  body.append("image", image, image.name || "image");
  const answer = await fetch("explain?" + new URLSearchParams({ model: model.value, ...parameters }), { method: "POST", body });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Error(problem.error || `the server answered ${answer.status}`);
  }
  return answer;
}

async function show(rank) {
  const question = ++asked;
  try {
    const drawn = await (await ask({ format: "jpeg", rank, caption: false })).blob();
    if (question !== asked) return;
    URL.revokeObjectURL(picture.src);
    picture.src = URL.createObjectURL(drawn);
    picture.hidden = false;
    drop.classList.add("full");
    [...classes.querySelectorAll("button")].forEach((one, i) => one.setAttribute("aria-pressed", i === rank - 1));
    picture.alt = `Where the network sees ${classes.querySelectorAll(".label")[rank - 1]?.textContent}`;
  } catch (error) {
    if (question === asked) say(error.message, true);
  }
}

async function explain() {
  if (!image) return;
  const question = ++asked;
  say("Explaining ...");
  try {
    const found = await (await ask({ format: "json", boxes: "none" })).json();
    if (question !== asked) return;
    say(`${found.source}: ${found.width} × ${found.height} pixels, ${found.method} on ${found.provider}`);
    classes.replaceChildren(...found.top.map((one, i) => {
      const entry = document.createElement("li"), button = document.createElement("button");
      const label = document.createElement("span"), score = document.createElement("span");
      label.className = "label";
      label.textContent = one.label;
      score.textContent = one.score === null ? "not finite" : Number(one.score.toPrecision(3));
      button.append(label, score);
      button.addEventListener("click", () => show(i + 1));
      entry.append(button);
      return entry;
    }));
    await show(1);
  } catch (error) {
    if (question === asked) say(error.message, true);
  }
}

function take(files) {
  const found = [...files].find((one) => one.type.startsWith("image/")) || files[0];
  if (!found) return;
  image = found;
  explain();
}

file.addEventListener("change", () => take(file.files));
model.addEventListener("change", explain);
addEventListener("paste", (event) => take(event.clipboardData.files));
addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
addEventListener("dragleave", () => drop.classList.remove("over"));
addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files); });
drop.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") file.click(); });

const models = await (await fetch("v2/repository/index", { method: "POST" })).json();
model.replaceChildren(...[...new Set(models.map((one) => one.name))].map((name) => new Option(name, name)));
