"use strict";
// What the next message attaches: an image as its address, a text file with name and text.
const attachments = (() => {
  const MOST_FILE_BYTES = 1 << 20;
  let pending = [];

  async function add(files, takesImages, say) {
    for (const file of files) {
      const isImage = file.type.startsWith("image/"), text = isImage || file.size > MOST_FILE_BYTES ? "" : await file.text();
      if (isImage && !takesImages) say(`${file.name}: the model takes no images.`);
      else if (isImage) pending.push(await readImage(file));
      else if (file.size > MOST_FILE_BYTES) say(`${file.name} is larger than 1 MiB.`);
      else if (/[\0\uFFFD]/.test(text)) say(`${file.name} is no text in UTF-8.`);
      else pending.push({ name: file.name, text });
    }
    draw();
  }

  const readImage = (file) => new Promise((resolve) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.readAsDataURL(file);
  });

  function draw() {
    $("pending").replaceChildren(...pending.map((each, at) => {
      const name = each.name ?? `image ${at + 1}`;
      const remove = button("×", () => set(pending.filter((_, other) => other !== at)), { ariaLabel: `remove ${name}` });
      return element("span", {}, each.name ?? element("img", { src: each, alt: name }), remove);
    }));
  }

  function set(attached) {
    pending = attached;
    draw();
  }

  const isImage = (each) => typeof each === "string";

  return { add, set, all: () => pending, images: () => pending.filter(isImage), files: () => pending.filter((each) => !isImage(each)) };
})();
