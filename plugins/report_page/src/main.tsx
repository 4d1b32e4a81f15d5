import { render } from "preact";
import "uplot/dist/uPlot.min.css";
import "./page.css";
import { curves } from "./curves";
import { steps } from "./data";
import { Film } from "./film";
import { listen } from "./keys";
import { Large } from "./large";
import { enliven } from "./static";

enliven();
const film = document.getElementById("film");
if (film && steps.length) {
  film.replaceChildren();
  render(<Film />, film);
  const place = document.createElement("div");
  document.body.append(place);
  render(<Large />, place);
  listen();
}
curves();
