/** One picture large, alone, beside another, or wiped over it. */
import { useEffect, useRef, useState } from "preact/hooks";
import { runName } from "./blind";
import { memory, pictureAt, report, several, shownStrips, stepName, steps } from "./data";
import type { Strip } from "./data";
import { Picture } from "./picture";
import { choose, move, star, useChosen } from "./state";
import type { Chosen, Mode } from "./state";

interface Other {
  name: string;
  label: string;
}

/** What a picture can be held against: value of the choice and what it is called. */
function rivals(chosen: Chosen): [string, string][] {
  const found: [string, string][] = [];
  if (report.runs.some((run) => run.photos.length)) found.push(["photo", "your photograph"]);
  if (steps.length > 1) found.push(["first", stepName(steps[0] ?? 0)]);
  if (steps.length > 2) found.push(["before", "the step before"]);
  report.runs.forEach((run, i) => i !== chosen.run && found.push([`run-${i}`, chosen.blind ? "the other" : run.name]));
  return found;
}

function other(strip: Strip, chosen: Chosen): Other | null {
  const row = strip.runs[chosen.run];
  const step = steps[chosen.step] ?? 0;
  if (chosen.against === "photo") {
    const photos = report.runs.find((run) => run.photos.length)?.photos ?? [];
    const photo = photos[chosen.photo % Math.max(1, photos.length)];
    return photo ? { name: photo.picture, label: "your photograph" } : null;
  }
  const wanted = chosen.against === "before" ? steps[Math.max(0, chosen.step - 1)] : steps[0];
  if (chosen.against.startsWith("run-")) {
    const run = Number(chosen.against.slice(4));
    const found = pictureAt(strip.runs[run], step);
    return found && { name: found.name, label: `${runName(run)}, ${stepName(found.step)}` };
  }
  const found = pictureAt(row, wanted ?? 0);
  return found && { name: found.name, label: stepName(found.step) };
}

function measured(strip: Strip, run: number, step: number): string {
  const values = report.runs[run]?.values.find(
    (v) => v.key === strip.key && v.seed === strip.seed && v.step === step,
  )?.values;
  if (!values) return "";
  const said = Object.entries(values).map(([name, value]) => `${name.replaceAll("_", " ")} ${value.toFixed(2)}`);
  return said.join(", ");
}

function Wipe(props: { left: Other; right: Other; prompt: string }) {
  const [cut, setCut] = useState(50);
  const stage = useRef<HTMLDivElement>(null);
  useEffect(() => stage.current?.style.setProperty("--cut", `${cut}%`), [cut]);
  const follow = (event: PointerEvent) => {
    const box = stage.current?.getBoundingClientRect();
    if (box && (event.buttons || event.pointerType === "mouse"))
      setCut(Math.round(Math.min(100, Math.max(0, ((event.clientX - box.left) / box.width) * 100))));
  };
  return (
    <div class="wiping">
      <div class="stage wipe" ref={stage} onPointerMove={follow} onPointerDown={follow}>
        <Picture name={props.right.name} alt={`${props.prompt}, ${props.right.label}`} eager />
        <Picture class="over" name={props.left.name} alt={`${props.prompt}, ${props.left.label}`} eager />
        <span class="line" aria-hidden="true" />
        <span class="left label">{props.left.label}</span>
        <span class="right label">{props.right.label}</span>
      </div>
      <input
        type="range"
        min={0}
        max={100}
        value={cut}
        aria-label="Where the pictures meet"
        aria-valuetext={`${cut} % ${props.left.label}`}
        onInput={(event) => setCut(Number(event.currentTarget.value))}
      />
    </div>
  );
}

function Stage(props: { strip: Strip; mine: Other; chosen: Chosen }) {
  const { strip, mine, chosen } = props;
  const held = chosen.mode === "one" ? null : other(strip, chosen);
  if (!held)
    return (
      <div class="stage">
        <Picture name={mine.name} alt={`${strip.prompt}, ${mine.label}`} eager />
      </div>
    );
  if (chosen.mode === "wipe") return <Wipe left={held} right={mine} prompt={strip.prompt} />;
  return (
    <div class="stage pair">
      {[held, mine].map((one) => (
        <figure key={one.label}>
          <Picture name={one.name} alt={`${strip.prompt}, ${one.label}`} eager />
          <figcaption>{one.label}</figcaption>
        </figure>
      ))}
    </div>
  );
}

const MODES: [Mode, string][] = [["one", "Alone"], ["side", "Side by side"], ["wipe", "Wipe"]];

function Tools(props: { chosen: Chosen; name: string }) {
  const { chosen, name } = props;
  const choices = rivals(chosen);
  const held = choices.some(([value]) => value === chosen.against) ? chosen.against : choices[0]?.[0];
  useEffect(() => {
    if (held && held !== chosen.against) choose({ against: held });
  }, [held]);
  return (
    <div class="tools">
      {choices.length ? (
        <fieldset class="segments">
          <legend class="unseen">How to look at it</legend>
          {MODES.map(([mode, label]) => (
            <label key={mode}>
              <input type="radio" name="mode" checked={chosen.mode === mode} onChange={() => choose({ mode })} />
              <span>{label}</span>
            </label>
          ))}
        </fieldset>
      ) : null}
      {chosen.mode !== "one" && choices.length > 1 ? (
        <label class="rival">
          with{" "}
          <select value={held} onChange={(event) => choose({ against: event.currentTarget.value })}>
            {choices.map(([value, label]) => (
              <option key={value} value={value}>{label}</option>
            ))}
          </select>
        </label>
      ) : null}
      <button type="button" class="button" aria-pressed={chosen.stars.has(name)} onClick={() => star(name)}>
        {chosen.stars.has(name) ? "★ Starred" : "☆ Star"}
      </button>
    </div>
  );
}

export function current(chosen: Chosen): { strip: Strip; name: string; step: number } | null {
  const list = shownStrips(chosen.number);
  const strip = list[Math.min(chosen.row, list.length - 1)];
  const found = strip && pictureAt(strip.runs[chosen.run], steps[chosen.step] ?? 0);
  return strip && found ? { strip, ...found } : null;
}

export function Large() {
  const chosen = useChosen();
  const dialog = useRef<HTMLDialogElement>(null);
  const opened = useRef<Element | null>(null);
  useEffect(() => {
    const box = dialog.current;
    if (!box) return;
    if (chosen.large && !box.open) {
      opened.current = document.activeElement;
      box.showModal();
    }
    if (!chosen.large && box.open) {
      box.close();
      if (opened.current instanceof HTMLElement) opened.current.focus();
    }
  }, [chosen.large]);
  const found = current(chosen);
  const label = found ? stepName(found.step) : "";
  const run = runName(chosen.run);
  const said = found && measured(found.strip, chosen.run, found.step);
  const count = shownStrips(chosen.number).length;
  return (
    <dialog
      ref={dialog}
      class="large"
      aria-label="The picture, large"
      onClose={() => choose({ large: false })}
      onClick={(event) => event.target === dialog.current && choose({ large: false })}
    >
      {chosen.large ? (
        <div class="inside">
          <header>
            <div>
              <h2>{found?.strip.prompt ?? "No picture"}</h2>
              <p class="aside">
                {label}
                {several && !chosen.blind ? <> <span class={`chip c${chosen.run}`}>{run}</span></> : null}
                {found ? `, seed ${found.strip.seed}` : ""}
                {said ? `, ${said}` : ""}
              </p>
            </div>
            <button type="button" class="button close" aria-label="Close" onClick={() => choose({ large: false })}>✕</button>
          </header>
          {found ? <Stage strip={found.strip} mine={{ name: found.name, label: several ? `${run}, ${label}` : label }} chosen={chosen} /> : <div class="stage"><p>There is no picture at this step.</p></div>}
          <footer>
            <div class="steps">
              <button type="button" class="button" disabled={chosen.step === 0} onClick={() => move(-1)}>← <span>earlier</span></button>
              <button type="button" class="button" disabled={chosen.step >= steps.length - 1} onClick={() => move(1)}><span>later</span> →</button>
              <button type="button" class="button" disabled={chosen.row === 0} onClick={() => choose({ row: chosen.row - 1 })}>↑ <span>prompt</span></button>
              <button type="button" class="button" disabled={chosen.row >= count - 1} onClick={() => choose({ row: chosen.row + 1 })}>↓ <span>prompt</span></button>
            </div>
            <Tools chosen={chosen} name={found ? memory(found.strip, chosen.run, found.step) : ""} />
          </footer>
        </div>
      ) : null}
    </dialog>
  );
}
