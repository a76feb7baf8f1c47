// Uploads a file and makes a batch of it; what is wrong is said beside the field that it is about.

import { call, upload } from "./api.js";
import { byId, duration, element, say } from "./format.js";

// Names of the API's parameters -> fields here.
const FIELDS = {
  file: "file",
  purpose: "file",
  input_file_id: "file",
  endpoint: "endpoint",
  completion_window: "window",
  priority: "priority",
};
const INPUTS = ["file", "endpoint", "window", "priority"];
const MEGABYTE = 1e6;

export class SubmitForm {
  constructor(announce) {
    this.announce = announce;
    this.dialog = byId("submit-dialog");
    byId("submit-button").addEventListener("click", () => this.open());
    byId("submit-close").addEventListener("click", () => this.dialog.close());
    byId("submit-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("window-use").addEventListener("click", () => {
      byId("window").value = byId("window-use").value;
      this.clear();
      byId("submit-send").focus();
    });
    for (const name of INPUTS) byId(name).addEventListener("input", () => this.clearField(name));
    byId("file").addEventListener("change", () => this.forget());
    this.dialog.addEventListener("close", () => this.forget());
  }

  offer(endpoints, longestS) {
    say(byId("window-hint"), `Minutes, hours or days: 30m, 24h, 7d; ${duration(longestS)} at most.`);
    byId("endpoint").replaceChildren(...endpoints.map((one) => element("option", { value: one }, one)));
  }

  open() {
    this.clear();
    this.dialog.showModal();
    byId("file").focus();
  }

  clear() {
    INPUTS.forEach((name) => this.clearField(name));
    byId("form-error").hidden = true;
    byId("window-use").hidden = true;
  }

  clearField(name) {
    byId(name).removeAttribute("aria-invalid");
    byId(`${name}-error`).hidden = true;
  }

  refuse(name, message) {
    byId(name).setAttribute("aria-invalid", "true");
    const error = byId(`${name}-error`);
    error.hidden = false;
    say(error, message);
    byId(name).focus();
  }

  // A file that no batch was made of would stay, and count for the tenant's quota.
  forget() {
    if (this.fileId) call("DELETE", `v1/files/${this.fileId}`).catch(() => {});
    this.fileId = null;
  }

  async send() {
    if (this.isSending) return;
    this.clear();
    const [file] = byId("file").files;
    if (!file) {
      this.refuse("file", "Choose a file.");
      return;
    }
    const priority = byId("priority").value.trim();
    if (!/^[+-]?\d+$/.test(priority)) {
      this.refuse("priority", "Priority is a whole number.");
      return;
    }
    this.setSending(true);
    try {
      this.fileId ??= (await upload(file, (sent, all) => this.showUpload(sent, all))).id;
      const batch = await call("POST", "v1/batches", {
        input_file_id: this.fileId,
        endpoint: byId("endpoint").value,
        completion_window: byId("window").value.trim(),
        priority: Number(priority),
      });
      this.fileId = null;
      this.dialog.close();
      byId("file").value = "";
      this.announce(`Batch ${batch.id} was accepted.`);
    } catch (error) {
      this.showError(error);
    } finally {
      this.setSending(false);
    }
  }

  showError(error) {
    const field = FIELDS[error.param];
    if (field) {
      this.refuse(field, error.message);
    } else {
      byId("form-error").hidden = false;
      say(byId("form-error"), error.message);
    }
    if (error.earliestWindow) {
      const button = byId("window-use");
      button.hidden = false;
      button.value = error.earliestWindow;
      say(button, `Use ${error.earliestWindow}, the earliest that fits`);
    }
  }

  setSending(isSending) {
    this.isSending = isSending;
    byId("submit-send").disabled = isSending;
    say(byId("submit-send"), isSending ? "Submitting" : "Submit");
    byId("upload").hidden = true;
  }

  showUpload(sent, all) {
    byId("upload").hidden = false;
    byId("upload-bar").value = sent / all;
    say(byId("upload-text"), `${(sent / MEGABYTE).toFixed(1)} of ${(all / MEGABYTE).toFixed(1)} MB`);
  }
}
