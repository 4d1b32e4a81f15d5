import { useEffect, useRef, useState } from "preact/hooks";
import { address } from "./data";

/** What stands there before: an image without an address shows as a broken one. */
const EMPTY = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==";

/** A picture that is unpacked when it comes near the window. */
export function Picture(props: { name: string; alt: string; class?: string; eager?: boolean }) {
  const place = useRef<HTMLImageElement>(null);
  const [near, setNear] = useState(Boolean(props.eager));
  useEffect(() => {
    const image = place.current;
    if (near || !image) return;
    const watch = new IntersectionObserver(
      (seen) => seen.some((entry) => entry.isIntersecting) && setNear(true),
      { rootMargin: "400px" },
    );
    watch.observe(image);
    // Paper has no window to come near.
    const print = () => setNear(true);
    addEventListener("beforeprint", print);
    return () => {
      watch.disconnect();
      removeEventListener("beforeprint", print);
    };
  }, [near]);
  return (
    <img
      ref={place}
      class={props.class}
      alt={props.alt}
      decoding="async"
      draggable={false}
      src={near ? address(props.name) : EMPTY}
    />
  );
}
