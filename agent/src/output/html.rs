//! HTML pages that are one file and ask for nothing: the frame that all of them share, and the
//! page of a profile.
//!
//! A [`Page`] states a Content-Security-Policy that allows its own style and script by their
//! hashes and nothing else: no request, no inline handler, no `eval`, and (in browsers that know
//! trusted types) no markup made from strings. Data of the target reaches a page in two ways only:
//! escaped by [`escape::xml`] in markup, or as JSON by [`Page::data`], from which the scripts make
//! text nodes.
//!
//! The components of pages: a flame graph ([`Page::flame`], whose data is [`flame::Data`]) and
//! tables that a click on a column's head sorts ([`Page::tables`], for `<table class="sortable">`;
//! a cell's `data-sort-value` is compared instead of its text). `agent/src/output/html/*.js` says
//! what they offer to scripts.

pub mod flame;
pub mod profile;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::escape;

const PAGE_CSS: &str = include_str!("html/page.css");
const PAGE_JS: &str = include_str!("html/page.js");
const FLAME_CSS: &str = include_str!("html/flame.css");
const FLAME_JS: [&str; 4] = [
    include_str!("html/model.js"),
    include_str!("html/paint.js"),
    include_str!("html/controls.js"),
    include_str!("html/flame.js"),
];
const TABLE_JS: &str = include_str!("html/table.js");

/// A page in the making.
///
/// ```
/// use agent::output::html::Page;
/// let page = Page::new("Hello").tables().body("<main><p>1 &lt; 2</p></main>");
/// assert!(page.render().starts_with("<!DOCTYPE html>"));
/// ```
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    live: bool,
    styles: Vec<&'static str>,
    scripts: Vec<&'static str>,
    data: String,
    body: String,
}

impl Page {
    /// An empty page. The title may hold anything: it is escaped.
    pub fn new(title: &str) -> Self {
        Self {
            title: escape::xml(title),
            live: false,
            styles: vec![PAGE_CSS],
            scripts: vec![PAGE_JS],
            data: String::new(),
            body: String::new(),
        }
    }

    /// Lets the page's scripts fetch from where the page came from, and from nowhere else.
    #[must_use]
    pub fn live(mut self) -> Self {
        self.live = true;
        self
    }

    /// Adds the flame graph component: the script function `flame(element, data, options)`.
    #[must_use]
    pub fn flame(mut self) -> Self {
        self.scripts.extend(FLAME_JS);
        self.style(FLAME_CSS)
    }

    /// Makes the tables of the class `sortable` sortable: the script function `sortable(table)`.
    #[must_use]
    pub fn tables(self) -> Self {
        self.script(TABLE_JS)
    }

    /// Adds a style sheet after those before it.
    #[must_use]
    pub fn style(mut self, css: &'static str) -> Self {
        self.styles.push(css);
        self
    }

    /// Adds a script, which runs after those before it, when the whole page is there. All share
    /// one scope and are strict.
    #[must_use]
    pub fn script(mut self, javascript: &'static str) -> Self {
        self.scripts.push(javascript);
        self
    }

    /// Embeds a value that the scripts read with `embedded(id)`. `id` is a plain word.
    ///
    /// # Errors
    /// Only what the value's own `Serialize` reports.
    pub fn data<T: Serialize + ?Sized>(
        mut self,
        id: &'static str,
        value: &T,
    ) -> Result<Self, serde_json::Error> {
        let json = escape::json_in_script(value)?;
        self.data += &format!("<script type=\"application/json\" id=\"{id}\">{json}</script>\n");
        Ok(self)
    }

    /// Adds the head of the page: its title, what `markup` says below it (such as a
    /// `<dl class="facts">`), and the switch between light and dark.
    #[must_use]
    pub fn header(self, markup: &str) -> Self {
        let title = &self.title;
        let header = format!(
            r#"<header class="page"><div>
<h1>{title}</h1>
{markup}</div>
<button type="button" class="theme" title="light or dark" hidden="">Dark</button></header>"#
        );
        self.body(&header)
    }

    /// Adds markup to the body. What comes from the target must have passed [`escape::xml`].
    #[must_use]
    pub fn body(mut self, markup: &str) -> Self {
        self.body += markup;
        self.body.push('\n');
        self
    }

    /// The policy for a server to send as `Content-Security-Policy`: the document's own, and that
    /// no other page may frame it, which a document cannot say of itself.
    pub fn policy_header(&self) -> String {
        let (style, script) = self.code();
        self.policy(&style, &script) + "; frame-ancestors 'none'"
    }

    /// The contents of the style and the script element.
    fn code(&self) -> (String, String) {
        (
            format!("\n{}", self.styles.concat()),
            format!("\n'use strict';\n{}", self.scripts.concat()),
        )
    }

    /// The whole document.
    pub fn render(&self) -> String {
        let (style, script) = self.code();
        let policy = self.policy(&style, &script);
        let Self {
            title, body, data, ..
        } = self;
        format!(
            r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta http-equiv="Content-Security-Policy" content="{policy}" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta name="referrer" content="no-referrer" />
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}{data}<script>{script}</script>
</body>
</html>
"#
        )
    }

    /// The Content-Security-Policy (level 3, section 2.3.1 for the hashes).
    fn policy(&self, style: &str, script: &str) -> String {
        let connect = if self.live { "'self'" } else { "'none'" };
        format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src {connect}; img-src 'none'; \
             base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; \
             trusted-types 'none'",
            hash(script),
            hash(style)
        )
    }
}

/// The hash source of an inline script or style.
fn hash(content: &str) -> String {
    let digest = Sha256::digest(content.as_bytes());
    format!("'sha256-{}'", STANDARD.encode(digest))
}

#[cfg(test)]
pub(in crate::output) mod tests;
