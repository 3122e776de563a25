//! The bill of materials: what the file is made of, as CycloneDX 1.5 (ECMA-424) in JSON.
//!
//! It comes from `cargo metadata` and `Cargo.lock`; the same inputs give the same bytes, so it has no
//! date.

use crate::command::{self, cargo, root};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::process::Command;

use super::TRIPLE;

/// The document for the file with this SHA-256.
///
/// # Errors
/// Cargo does not answer, or not as expected.
pub(super) fn make(hash: &str) -> Result<Vec<u8>> {
    let mut metadata = cargo();
    metadata.args(["metadata", "--format-version", "1", "--locked"]);
    let metadata = command::output(metadata.args(["--filter-platform", TRIPLE]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let lock = fs::read_to_string(root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let graph = Graph::read(&metadata).context("cargo metadata has another form than known")?;
    let document = graph.document(hash, &checksums(&lock), linked()?)?;
    let mut bytes = serde_json::to_vec_pretty(&document)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The packages that the agent is built of.
struct Graph<'a> {
    packages: HashMap<&'a str, &'a Value>,
    /// The agent's own.
    agent: &'a str,
    /// What each package depends on, other than for its tests.
    edges: BTreeMap<&'a str, Vec<&'a str>>,
    /// Those whose code is in the file. The others only ran when it was compiled.
    linked: BTreeSet<&'a str>,
}

impl<'a> Graph<'a> {
    fn read(metadata: &'a Value) -> Option<Self> {
        let packages: HashMap<&str, &Value> = metadata["packages"]
            .as_array()?
            .iter()
            .filter_map(|package| Some((package["id"].as_str()?, package)))
            .collect();
        let (&agent, _) = packages
            .iter()
            .find(|(_, package)| package["name"] == "agent")?;
        let mut nodes = HashMap::new();
        for node in metadata["resolve"]["nodes"].as_array()? {
            nodes.insert(node["id"].as_str()?, node["deps"].as_array()?);
        }
        let mut graph = Self {
            packages,
            agent,
            edges: BTreeMap::new(),
            linked: BTreeSet::new(),
        };
        let mut waiting = vec![(agent, true)];
        while let Some((id, linked)) = waiting.pop() {
            let is_linked = linked && !graph.is_macro(id);
            let is_new = !graph.edges.contains_key(id);
            if !is_new && (!is_linked || graph.linked.contains(id)) {
                continue;
            }
            if is_linked {
                graph.linked.insert(id);
            }
            let mut edges = Vec::new();
            for dependency in nodes.get(id)?.iter() {
                let package = dependency["pkg"].as_str()?;
                let kinds = dependency["dep_kinds"].as_array()?;
                let is = |kind: Value| kinds.iter().any(|known| known["kind"] == kind);
                let normal = is(Value::Null);
                if normal || is(json!("build")) {
                    edges.push(package);
                    waiting.push((package, is_linked && normal));
                }
            }
            graph.edges.insert(id, edges);
        }
        Some(graph)
    }

    fn is_macro(&self, id: &str) -> bool {
        let targets = self
            .packages
            .get(id)
            .and_then(|package| package["targets"].as_array());
        let mut kinds = targets.into_iter().flatten();
        kinds.any(|target| target["kind"] == json!(["proc-macro"]))
    }

    /// The package's URL (package-url specification).
    fn url(&self, id: &str) -> Option<String> {
        let package = self.packages.get(id)?;
        let (name, version) = (package["name"].as_str()?, package["version"].as_str()?);
        Some(format!("pkg:cargo/{name}@{version}"))
    }

    fn component(&self, id: &str, checksums: &HashMap<String, String>) -> Option<Value> {
        let package = self.packages.get(id)?;
        let url = self.url(id)?;
        let scope = if self.linked.contains(id) {
            "required"
        } else {
            "excluded"
        };
        let mut component = json!({
            "type": "library",
            "bom-ref": url,
            "name": package["name"],
            "version": package["version"],
            "purl": url,
            "scope": scope,
        });
        if let Some(license) = package["license"].as_str() {
            // An old way to write it, still met.
            let expression = license.replace('/', " OR ");
            component["licenses"] = json!([{ "expression": expression }]);
        }
        if let Some(sum) = checksums.get(&url) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
        }
        Some(component)
    }

    fn document(
        &self,
        hash: &str,
        checksums: &HashMap<String, String>,
        linked: Vec<Value>,
    ) -> Result<Value> {
        let incomplete = "a package without name or version";
        let mut agent = self.component(self.agent, checksums).context(incomplete)?;
        agent["type"] = json!("application");
        agent["hashes"] = json!([{ "alg": "SHA-256", "content": hash }]);
        let mut components = Vec::new();
        let mut dependencies = Vec::new();
        for (&id, edges) in &self.edges {
            if id != self.agent {
                components.push(self.component(id, checksums).context(incomplete)?);
            }
            let mut on: Vec<String> = edges.iter().filter_map(|&id| self.url(id)).collect();
            if id == self.agent {
                let urls = linked.iter().filter_map(|other| other["bom-ref"].as_str());
                on.extend(urls.map(str::to_owned));
            }
            on.sort();
            on.dedup();
            dependencies.push(json!({ "ref": self.url(id), "dependsOn": on }));
        }
        components.extend(linked);
        components.sort_by_key(|component| component["bom-ref"].to_string());
        dependencies.sort_by_key(|dependency| dependency["ref"].to_string());
        Ok(json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "serialNumber": format!("urn:uuid:{}", uuid(hash)),
            "version": 1,
            "metadata": { "component": agent },
            "components": components,
            "dependencies": dependencies,
        }))
    }
}

/// A UUID of version 8 (RFC 9562, 5.8) made of a hash: the same file has the same number.
fn uuid(hash: &str) -> String {
    let part = |from: usize, to: usize| hash.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-8{}-8{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 15),
        part(15, 18),
        part(18, 30)
    )
}

/// What the linker adds of this machine: the standard library, the C library and GCC's unwinder.
fn linked() -> Result<Vec<Value>> {
    let said = |command: &mut Command| anyhow::Ok(command::output(command)?.trim().to_owned());
    let rust = said(Command::new("rustc").arg("--version"))?;
    let rust = rust.split(' ').nth(1).unwrap_or_default().to_owned();
    let libc = said(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    let libc = libc.split(' ').next_back().unwrap_or_default().to_owned();
    let gcc = said(Command::new("gcc").arg("-dumpfullversion"))?;
    let parts = [
        ("rust-std", rust, "MIT OR Apache-2.0"),
        ("glibc", libc, "LGPL-2.1-or-later"),
        ("libgcc", gcc, "GPL-3.0-or-later WITH GCC-exception-3.1"),
    ];
    let component = |(name, version, license): (&str, String, &str)| {
        let url = format!("pkg:generic/{name}@{version}");
        json!({
            "type": "library",
            "bom-ref": url,
            "name": name,
            "version": version,
            "purl": url,
            "scope": "required",
            "licenses": [{ "expression": license }],
        })
    };
    Ok(parts.into_iter().map(component).collect())
}

/// The registry's checksums in `Cargo.lock`, by package URL.
fn checksums(lock: &str) -> HashMap<String, String> {
    let mut sums = HashMap::new();
    for package in lock.split("[[package]]") {
        let field = |name: &str| {
            let mut lines = package.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
            Some(value.trim_matches('"'))
        };
        if let (Some(name), Some(version), Some(sum)) =
            (field("name"), field("version"), field("checksum"))
        {
            sums.insert(format!("pkg:cargo/{name}@{version}"), sum.to_owned());
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    /// What the specification asks of a document, and that every reference leads somewhere.
    #[test]
    fn the_document_has_the_form_of_its_specification() {
        let hash = "0123456789abcdef".repeat(4);
        let bytes = make(&hash).unwrap();
        assert_eq!(bytes, make(&hash).unwrap(), "the same inputs, other bytes");
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(document["bomFormat"], "CycloneDX");
        assert_eq!(document["specVersion"], "1.5");
        let serial = "urn:uuid:01234567-89ab-8cde-8f01-23456789abcd";
        assert_eq!(document["serialNumber"], serial);
        let agent = &document["metadata"]["component"];
        assert_eq!(
            (&agent["type"], &agent["name"]),
            (&json!("application"), &json!("agent"))
        );
        assert_eq!(agent["hashes"][0]["content"], hash.as_str());
        let mut refs = BTreeSet::from([agent["bom-ref"].as_str().unwrap()]);
        for component in document["components"].as_array().unwrap() {
            assert!(
                refs.insert(component["bom-ref"].as_str().unwrap()),
                "{component} twice"
            );
            for name in ["type", "name", "version", "purl", "scope"] {
                assert!(component[name].is_string(), "{name} of {component}");
            }
            assert!(
                component["licenses"][0]["expression"].is_string(),
                "{component}"
            );
            let from_registry = component["purl"]
                .as_str()
                .unwrap()
                .starts_with("pkg:cargo/")
                && component["name"] != "agent-ebpf";
            let sum = component["hashes"][0]["content"]
                .as_str()
                .unwrap_or_default();
            assert_eq!(sum.len(), if from_registry { 64 } else { 0 }, "{component}");
        }
        for dependency in document["dependencies"].as_array().unwrap() {
            assert!(
                refs.contains(dependency["ref"].as_str().unwrap()),
                "{dependency}"
            );
            for on in dependency["dependsOn"].as_array().unwrap() {
                assert!(refs.contains(on.as_str().unwrap()), "{on}");
            }
        }
    }

    #[test]
    fn what_is_in_the_file_is_told_from_what_made_it() {
        let document: Value = serde_json::from_slice(&make(&"0".repeat(64)).unwrap()).unwrap();
        let components = document["components"].as_array().unwrap();
        let scope = |name: &str| {
            let component = components
                .iter()
                .find(|component| component["name"] == name);
            component.map(|component| component["scope"].as_str().unwrap().to_owned())
        };
        for linked in ["aya", "gimli", "tokio", "glibc", "agent-ebpf"] {
            assert_eq!(scope(linked).as_deref(), Some("required"), "{linked}");
        }
        assert_eq!(scope("serde_derive").as_deref(), Some("excluded"));
        // Of tests and of other members only.
        for other in ["framehop", "tempfile", "xtask", "agent-tests"] {
            assert_eq!(scope(other), None, "{other}");
        }
    }
}
