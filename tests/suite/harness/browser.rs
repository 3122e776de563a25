//! A headless Chromium, driven over the DevTools protocol through a pair of pipes.
//!
//! <https://chromedevtools.github.io/devtools-protocol/>: messages are JSON, each ended by a NUL;
//! with `--remote-debugging-pipe` the browser reads them from descriptor 3 and answers on 4.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::eventually;

/// What an answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A browser with one page. Dropping it ends it.
pub(crate) struct Browser {
    child: Child,
    pipe: ChildStdin,
    messages: Receiver<Value>,
    last: u64,
    session: Option<String>,
    events: Vec<Value>,
    _home: TempDir,
}

impl Browser {
    /// Starts one with an empty page of 1280 by 800 pixels.
    pub(crate) fn start() -> Browser {
        use std::os::unix::process::CommandExt;
        let home = TempDir::new().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh"])
            .args(["chromium", "--headless", "--remote-debugging-pipe"])
            // The tests run as root, under which the browser has no sandbox.
            .args(["--no-sandbox", "--disable-gpu", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-extensions"])
            .arg(format!("--user-data-dir={}", home.path().display()))
            .env("HOME", home.path())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pipe = child.stdin.take().unwrap();
        let messages = messages_of(child.stdout.take().unwrap());
        let mut browser = Browser {
            child,
            pipe,
            messages,
            last: 0,
            session: None,
            events: Vec::new(),
            _home: home,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach);
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.resize(1280, 800);
        browser
    }

    /// Sends a command and waits for its result.
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.pipe
            .write_all(&bytes)
            .expect("Chromium does not run: `cargo xtask setup` installs it");
        let deadline = Instant::now() + LIMIT;
        loop {
            let message = self.receive(deadline, method);
            if message["id"] == self.last {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    fn receive(&self, deadline: Instant, awaited: &str) -> Value {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = self.messages.recv_timeout(left);
        message.unwrap_or_else(|error| panic!("Chromium, {awaited}: {error}"))
    }

    /// Opens an address and waits until it is loaded. What was recorded before is forgotten.
    pub(crate) fn open(&mut self, url: &str) {
        self.events.clear();
        self.call("Page.navigate", json!({ "url": url }));
        let deadline = Instant::now() + LIMIT;
        while self.of("Page.loadEventFired").next().is_none() {
            let message = self.receive(deadline, url);
            self.events.push(message);
        }
    }

    /// Opens a file.
    pub(crate) fn open_file(&mut self, path: &Path) {
        self.open(&format!(
            "file://{}",
            path.canonicalize().unwrap().display()
        ));
    }

    /// The value of a JavaScript expression, after the frame that is being drawn.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let expression = format!(
            "new Promise(done => requestAnimationFrame(() => setTimeout(done))).then(() => ({expression}))"
        );
        let parameters =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let result = self.call("Runtime.evaluate", parameters);
        let thrown = &result["exceptionDetails"];
        assert!(thrown.is_null(), "{expression}: {thrown}");
        result["result"]["value"].clone()
    }

    /// The text of the first element that the CSS selector selects.
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let expression = format!("document.querySelector({}).innerText", json!(selector));
        let value = self.evaluate(&expression);
        value.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a JavaScript expression is true.
    pub(crate) fn await_true(&mut self, expression: &str) {
        let held = eventually(LIMIT, || self.evaluate(expression) == true);
        assert!(held, "never true: {expression}");
    }

    /// Clicks at a point of the window, in CSS pixels.
    pub(crate) fn click_at(&mut self, x: f64, y: f64) {
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": x, "y": y, "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Clicks into the middle of the first element that the CSS selector selects.
    pub(crate) fn click(&mut self, selector: &str) {
        let expression = format!(
            "(() => {{ const e = document.querySelector({}); e.scrollIntoView({{block: 'center'}}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()",
            json!(selector)
        );
        let at = self.evaluate(&expression);
        self.click_at(at[0].as_f64().unwrap(), at[1].as_f64().unwrap());
    }

    /// Presses a key by its name (`Enter`, `Escape`, `ArrowDown`) or its character.
    pub(crate) fn press(&mut self, key: &str) {
        // What the browser itself does on a key goes by the code: a button pressed, a dialog closed.
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            _ => 0,
        };
        let mut event = json!({ "type": "keyDown", "key": key, "windowsVirtualKeyCode": code });
        if key.chars().count() == 1 {
            event["text"] = json!(key);
        } else if key == "Enter" {
            event["text"] = json!("\r");
        }
        self.call("Input.dispatchKeyEvent", event);
        self.call(
            "Input.dispatchKeyEvent",
            json!({ "type": "keyUp", "key": key }),
        );
    }

    /// Types a text into what has the focus.
    pub(crate) fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Makes the window this large, in CSS pixels.
    pub(crate) fn resize(&mut self, width: u32, height: u32) {
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// Says that the system prefers `dark` or `light`.
    pub(crate) fn prefer(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call(
            "Emulation.setEmulatedMedia",
            json!({ "features": features }),
        );
    }

    /// Writes what the window shows, as PNG.
    pub(crate) fn screenshot(&mut self, path: &Path) {
        let _ = self.evaluate("null");
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let data = shot["data"].as_str().unwrap();
        let bytes = base64::engine::general_purpose::STANDARD.decode(data);
        std::fs::write(path, bytes.unwrap()).unwrap();
    }

    /// The events of this kind since the page was opened.
    fn of(&self, method: &str) -> impl Iterator<Item = &Value> {
        let wanted = move |event: &&Value| event["method"] == method;
        self.events
            .iter()
            .filter(wanted)
            .map(|event| &event["params"])
    }

    /// Addresses of all requests since the page was opened, its own among them.
    pub(crate) fn requests(&mut self) -> Vec<String> {
        let _ = self.evaluate("null");
        let requests = self.of("Network.requestWillBeSent");
        requests
            .map(|event| event["request"]["url"].as_str().unwrap().to_owned())
            .collect()
    }

    /// What went wrong since the page was opened: exceptions, errors and warnings on the console
    /// (what the policy refused among them), dialogs.
    pub(crate) fn problems(&mut self) -> Vec<String> {
        let _ = self.evaluate("null");
        let bad = |level: &Value| {
            ["error", "warning", "assert"]
                .iter()
                .any(|&bad| level == bad)
        };
        let said = self
            .of("Runtime.consoleAPICalled")
            .filter(|event| bad(&event["type"]));
        let logged = self
            .of("Log.entryAdded")
            .filter(|event| bad(&event["entry"]["level"]));
        let thrown = self.of("Runtime.exceptionThrown");
        let dialogs = self.of("Page.javascriptDialogOpening");
        let all = said.chain(logged).chain(thrown).chain(dialogs);
        all.map(Value::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // SAFETY: kill has no memory effects; the group is the child's own, and the child is not reaped yet.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// The messages of a pipe, read by a thread so that waiting for one can have a limit.
fn messages_of(pipe: ChildStdout) -> Receiver<Value> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for message in BufReader::new(pipe).split(0).map_while(Result::ok) {
            let message = serde_json::from_slice(&message).unwrap();
            if sender.send(message).is_err() {
                break;
            }
        }
    });
    receiver
}
