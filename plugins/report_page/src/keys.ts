/** Keys: arrows, c and s. Fields that use arrows themselves keep them. */
import { memory, shownStrips } from "./data";
import { current } from "./large";
import { choose, move, now, star } from "./state";

function typing(target: EventTarget | null): boolean {
  return target instanceof Element && target.closest("input, select, textarea, .scroll") !== null;
}

export function listen(): void {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const chosen = now();
    const plain = !typing(event.target);
    if (event.key === "ArrowLeft" && plain) move(-1);
    else if (event.key === "ArrowRight" && plain) move(1);
    // Outside of the large view up and down scroll the page.
    else if (event.key === "ArrowUp" && plain && chosen.large) row(-1);
    else if (event.key === "ArrowDown" && plain && chosen.large) row(1);
    else if (event.key === "c") choose({ large: true, mode: chosen.large && chosen.mode === "wipe" ? "one" : "wipe" });
    else if (event.key === "s") {
      const found = current(chosen);
      if (found) star(memory(found.strip, chosen.run, found.step));
    } else return;
    event.preventDefault();
  });
}

function row(by: number): void {
  const { number, row: at } = now();
  choose({ row: Math.min(shownStrips(number).length - 1, Math.max(0, at + by)) });
}
