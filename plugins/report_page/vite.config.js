import { readFileSync } from "node:fs";
import { defineConfig } from "vite";

// Whoever passes a report on passes these on too: their licence wants its words in each copy.
const licences = ["preact", "uplot"].map((name) => {
  const text = readFileSync(new URL(`node_modules/${name}/LICENSE`, import.meta.url), "utf8");
  return `${name}\n${text.trim()}`;
});

// OUT lets the test build beside the committed files and compare.
export default defineConfig({
  logLevel: "warn",
  build: {
    outDir: process.env.OUT ?? "../dreambooth_plugins/report/static",
    emptyOutDir: false,
    target: "es2022",
    modulePreload: false,
    cssMinify: true,
    lib: {
      entry: "src/main.tsx",
      formats: ["iife"],
      name: "report",
      fileName: () => "page.js",
      cssFileName: "page",
    },
    rolldownOptions: { output: { postBanner: `/*!\n${licences.join("\n\n")}\n*/` } },
  },
});
