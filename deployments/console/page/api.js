// Calls of the application's HTTP API, with the tenant's key in their header.

const KEPT_AS = "conserve-key";

export class ApiError extends Error {
  constructor(status, error) {
    super(error.message || `The server answered with status ${status}.`);
    this.status = status;
    this.param = error.param || null;
    this.code = error.code || null;
    this.earliestWindow = error.earliest_completion_window || null;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEPT_AS) || "",
  set: (value) => (value ? sessionStorage.setItem(KEPT_AS, value) : sessionStorage.removeItem(KEPT_AS)),
};

export function authorization() {
  return key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
}

export async function toError(response) {
  let error = {};
  try {
    error = (await response.json()).error || {};
  } catch {
    // Not one of the application's own answers: a proxy's, for example.
  }
  return new ApiError(response.status, error);
}

export async function call(method, path, body) {
  const headers = authorization();
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new ApiError(0, { message: "The server cannot be reached." });
  }
  if (!response.ok) throw await toError(response);
  return response.json();
}

// fetch tells nothing of how far an upload is.
export function upload(file, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("file", file, file.name);
    request.open("POST", "v1/files");
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => event.lengthComputable && onProgress(event.loaded, event.total));
    request.addEventListener("load", () => {
      if (request.status === 200) resolve(request.response);
      else reject(new ApiError(request.status, (request.response && request.response.error) || {}));
    });
    request.addEventListener("error", () => reject(new ApiError(0, { message: "The upload broke off: the server cannot be reached." })));
    request.send(form);
  });
}

// A link cannot carry a key. Without one the browser writes to disk as it reads.
export async function download(path, name) {
  if (!key.get()) {
    save(path, name);
    return;
  }
  const response = await fetch(path, { headers: authorization() });
  if (!response.ok) throw await toError(response);
  const address = URL.createObjectURL(await response.blob());
  save(address, name);
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

function save(address, name) {
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
}
