/** The filmstrip: prompts down, steps across, one slider for all of them. */
import { useEffect, useRef } from "preact/hooks";
import { Blind, order, runName, vote, voteName } from "./blind";
import { memory, numbers, pictureAt, report, several, shownStrips, stepName, steps } from "./data";
import type { Strip } from "./data";
import { Picture } from "./picture";
import { choose, useChosen } from "./state";

function Slider() {
  const { step, number } = useChosen();
  const here = steps[step] ?? 0;
  const best = several ? null : (report.runs[0]?.best ?? null);
  return (
    <div class="slider">
      <div class="where">
        <output class="step" for="step">
          {here === 0 ? "Untrained" : `Step ${here}`}
          {here === best ? <span class="tag">best</span> : null}
        </output>
        {numbers.length > 1 ? (
          <fieldset class="segments">
            <legend class="unseen">Which picture of each prompt</legend>
            {numbers.map((n) => (
              <label key={n}>
                <input type="radio" name="number" checked={n === number} onChange={() => choose({ number: n })} />
                <span><span class="unseen">picture </span>{n}</span>
              </label>
            ))}
          </fieldset>
        ) : null}
      </div>
      {steps.length > 1 ? (
        <>
          <input
            id="step"
            type="range"
            min={0}
            max={steps.length - 1}
            step={1}
            value={step}
            aria-label="Step shown in all rows"
            aria-valuetext={stepName(here)}
            onInput={(event) => choose({ step: Number(event.currentTarget.value) })}
          />
          <div class="ticks" aria-hidden="true">
            {steps.map((at, i) => (
              <span key={at} class={i === step ? "on" : ""}>{at}</span>
            ))}
          </div>
        </>
      ) : null}
    </div>
  );
}

function Now(props: { strip: Strip; run: number; row: number; step: number }) {
  const { strip, run, row, step } = props;
  const found = pictureAt(strip.runs[run], step);
  const { blind, stars: starred, votes } = useChosen();
  const name = runName(run);
  const chip = blind ? null : <span class={`chip c${run}`}>{name}</span>;
  if (!found)
    return (
      <figure class="now">
        <div class="nothing">no picture</div>
        {several ? <figcaption>{chip}</figcaption> : null}
      </figure>
    );
  return (
    <figure class="now">
      <button
        type="button"
        class="open"
        aria-label={`Enlarge: ${strip.prompt}, ${stepName(found.step)}${several ? `, ${name}` : ""}`}
        onClick={() => choose({ large: true, row, run, mode: "one" })}
      >
        <Picture name={found.name} alt={`${strip.prompt}, ${stepName(found.step)}`} eager={row < 2} />
        {starred.has(memory(strip, run, found.step)) ? <span class="starred" aria-hidden="true">★</span> : null}
      </button>
      <figcaption>
        {several ? chip : stepName(found.step)}
        {several && found.step !== step ? ` ${stepName(found.step)}` : null}
      </figcaption>
      {blind ? (
        <button
          type="button"
          class="button"
          aria-pressed={votes.get(voteName(strip)) === run}
          onClick={() => vote(strip, run)}
        >
          This one
        </button>
      ) : null}
    </figure>
  );
}

function Steps(props: { strip: Strip; run: number; current: number }) {
  const row = props.strip.runs[props.run];
  if (!row || steps.length < 2) return null;
  const { stars } = useChosen();
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    // Only the strip scrolls, never the page.
    const frame = box.current?.querySelector<HTMLElement>(".frame.now");
    if (box.current && frame)
      box.current.scrollLeft = frame.offsetLeft - (box.current.clientWidth - frame.clientWidth) / 2;
  }, [props.current]);
  return (
    <div ref={box} class={`strip c${props.run}`} role="group" aria-label="All steps">
      {steps.map((at, i) => {
        const name = row.pictures[at];
        if (!name) return null;
        return (
          <button
            key={at}
            type="button"
            class={i === props.current ? "frame now" : "frame"}
            aria-pressed={i === props.current}
            onClick={() => choose({ step: i })}
          >
            <Picture name={name} alt="" />
            <span><span class="unseen">step </span>{at}{stars.has(memory(props.strip, props.run, at)) ? " ★" : ""}</span>
          </button>
        );
      })}
    </div>
  );
}

function FilmRow(props: { strip: Strip; row: number }) {
  const { strip, row } = props;
  const chosen = useChosen();
  const step = steps[chosen.step] ?? 0;
  const photos = report.runs.find((run) => run.photos.length)?.photos ?? [];
  const photo = photos[chosen.photo % Math.max(1, photos.length)];
  let touched: number | null = null;
  return (
    <article
      class={chosen.row === row ? "row current" : "row"}
      onFocusCapture={() => chosen.row !== row && choose({ row })}
      onTouchStart={(event) => (touched = event.touches[0]?.clientX ?? null)}
      onTouchEnd={(event) => {
        const by = (event.changedTouches[0]?.clientX ?? 0) - (touched ?? 0);
        // The strip scrolls under the finger; elsewhere a swipe goes to the next step.
        if (touched !== null && Math.abs(by) > 40 && !(event.target as Element).closest(".strip"))
          choose({ step: Math.min(steps.length - 1, Math.max(0, chosen.step + (by < 0 ? 1 : -1))) });
        touched = null;
      }}
    >
      <h3 class="prompt">{strip.prompt}</h3>
      <div class="cells">
        {photo ? (
          <figure class="pinned">
            <button
              type="button"
              class="open"
              aria-label={`Your photograph ${photo.name}: show the next one`}
              onClick={() => choose({ photo: (chosen.photo + 1) % photos.length })}
            >
              <Picture name={photo.picture} alt={`Your photograph ${photo.name}`} eager={row < 2} />
            </button>
            <figcaption>photograph{photos.length > 1 ? ` ${(chosen.photo % photos.length) + 1} of ${photos.length}` : ""}</figcaption>
          </figure>
        ) : null}
        {order(strip).map((run) => (
          <Now key={run} strip={strip} run={run} row={row} step={step} />
        ))}
        {several ? null : <Steps strip={strip} run={0} current={chosen.step} />}
      </div>
    </article>
  );
}

export function Film() {
  const { number } = useChosen();
  return (
    <>
      {several ? <Blind /> : null}
      <div class="sticky"><Slider /></div>
      {shownStrips(number).map((strip, row) => (
        <FilmRow key={JSON.stringify([strip.key, strip.seed])} strip={strip} row={row} />
      ))}
      <p class="aside hint">
        Tap a picture to enlarge it. Keys: <kbd>←</kbd> <kbd>→</kbd> step, <kbd>↑</kbd> <kbd>↓</kbd> prompt
        (in the large view), <kbd>c</kbd> compare by wiping, <kbd>s</kbd> star.
      </p>
    </>
  );
}
