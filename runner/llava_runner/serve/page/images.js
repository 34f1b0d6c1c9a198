// Reads an image that the user gives, and makes large ones smaller before they are kept and sent.

const LONGEST_SIDE = 1600; // pixels; models see far fewer, and each question sends the image again
const LARGEST_FILE = 1 << 20; // bytes; a smaller file that fits is sent as it is
const SENT_AS_IT_IS = ["image/jpeg", "image/png", "image/webp"];
const THUMBNAIL = 72; // pixels

/** An image that cannot be used. Its message is for the user. */
export class ImageError extends Error {}

function drawn(bitmap, { width, height, left = 0, top = 0, right = bitmap.width, bottom = bitmap.height }) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff"; // JPEG has no transparency
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, left, top, right - left, bottom - top, 0, 0, width, height);
  return canvas;
}

function thumbnailOf(bitmap) {
  const side = Math.min(bitmap.width, bitmap.height);
  const left = (bitmap.width - side) / 2;
  const top = (bitmap.height - side) / 2;
  const square = { width: THUMBNAIL, height: THUMBNAIL, left, top, right: left + side, bottom: top + side };
  return drawn(bitmap, square).toDataURL("image/jpeg", 0.8);
}

async function reduced(bitmap) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * scale));
  const height = Math.max(1, Math.round(bitmap.height * scale));
  const canvas = drawn(bitmap, { width, height });
  return await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
}

/** Return {blob, thumbnail, name} of a file. Throw ImageError if the browser cannot read it. */
export async function readImage(file) {
  const name = file.name || "pasted image";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new ImageError(`This browser cannot read ${name} as an image. JPEG, PNG and WebP work.`);
  }
  const fits = Math.max(bitmap.width, bitmap.height) <= LONGEST_SIDE && file.size <= LARGEST_FILE;
  const blob = fits && SENT_AS_IT_IS.includes(file.type) ? file : await reduced(bitmap);
  const thumbnail = thumbnailOf(bitmap);
  bitmap.close();
  if (blob === null) throw new ImageError(`This browser cannot make ${name} smaller.`);
  // The bytes are copied: a file that changes on disk later could not be read again.
  return { blob: new Blob([await blob.arrayBuffer()], { type: blob.type }), thumbnail, name };
}

/** Return a Blob as a data: URL, as the API takes images. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Return the first image among what was dropped or pasted, or null. */
export function imageOf(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}
