//! An OCI image of the agent, made without a daemon: the layout of the image specification, and the
//! same as one tar file.

use crate::command::{self, root};
use crate::dist::{self, digest};
use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Arguments of `image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Take this static file instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// What the image says of itself.
struct Facts {
    version: String,
    /// The commit; `None` outside of a checkout.
    revision: Option<String>,
    /// The commit's time, RFC 3339: with the time of the build no image would be like another.
    created: String,
}

/// Makes the image in `target/dist`, and has skopeo read and copy it.
///
/// # Errors
/// The file cannot be built or written, or skopeo finds fault with the image.
pub(crate) fn run(args: &Args) -> Result<()> {
    let binary = dist::run(&dist::Args {
        binary: args.binary.clone(),
    })?;
    let bytes = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let facts = Facts::of_this_checkout();
    let directory = dist::directory();
    write(&directory, &bytes, &facts)?;
    let seen = check(&directory, &facts.version)?;
    println!("{seen}");
    Ok(())
}

impl Facts {
    fn of_this_checkout() -> Self {
        let git = |arguments: &[&str]| {
            let mut git = Command::new("git");
            git.args(arguments).current_dir(root()).env("TZ", "UTC");
            let said = command::output(&mut git).ok()?;
            Some(said.trim().to_owned()).filter(|said| !said.is_empty())
        };
        let date = [
            "log",
            "-1",
            "--format=%cd",
            "--date=format-local:%Y-%m-%dT%H:%M:%SZ",
        ];
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: git(&["rev-parse", "HEAD"]),
            created: git(&date).unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned()),
        }
    }

    fn labels(&self) -> Value {
        let mut labels = json!({
            "org.opencontainers.image.title": "agent",
            "org.opencontainers.image.description": "An eBPF live-debugging and profiling agent for Linux",
            "org.opencontainers.image.version": self.version,
            "org.opencontainers.image.created": self.created,
            "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
        });
        if let Some(revision) = &self.revision {
            labels["org.opencontainers.image.revision"] = json!(revision);
        }
        labels
    }
}

/// Writes `image/` and `image.tar`.
fn write(directory: &Path, binary: &[u8], facts: &Facts) -> Result<()> {
    let image = directory.join("image");
    if image.exists() {
        fs::remove_dir_all(&image).with_context(|| format!("cannot remove {}", image.display()))?;
    }
    let mut files = layout(binary, facts)?;
    files.sort();
    for (name, bytes) in &files {
        let path = image.join(name);
        fs::create_dir_all(path.with_file_name(""))?;
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in &files {
        append(&mut archive, name, bytes, 0o644)?;
    }
    let path = directory.join("image.tar");
    fs::write(&path, archive.into_inner()?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The files of the layout (image-layout.md of the image specification 1.0), by their paths.
fn layout(binary: &[u8], facts: &Facts) -> Result<Vec<(String, Vec<u8>)>> {
    let tar = layer(binary)?;
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    gzip.write_all(&tar)?;
    let layer = Blob::new(LAYER, gzip.finish()?);
    let config = Blob::json(
        CONFIG,
        &json!({
            "architecture": "amd64",
            "os": "linux",
            "created": facts.created,
            "config": {
                "User": "0:0",
                "Entrypoint": ["/agent"],
                "Env": ["PATH=/"],
                "WorkingDir": "/tmp",
                "Labels": facts.labels(),
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&tar))] },
            "history": [{ "created": facts.created, "created_by": "cargo xtask image" }],
        }),
    )?;
    let manifest = Blob::json(
        MANIFEST,
        &json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
            "annotations": facts.labels(),
        }),
    )?;
    let mut entry = manifest.descriptor();
    entry["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": facts.version });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), serde_json::to_vec(&index)?),
    ];
    files.extend([layer, config, manifest].map(|blob| (blob.path(), blob.bytes)));
    Ok(files)
}

/// The only layer: the program, and a directory to write to.
fn layer(binary: &[u8]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "agent", binary, 0o755)?;
    append(&mut archive, "tmp/", &[], 0o1777)?;
    Ok(archive.into_inner()?)
}

/// Adds a file of root's from 1970, or a directory, whose name ends in a slash.
fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(match name.ends_with('/') {
        true => tar::EntryType::Directory,
        false => tar::EntryType::Regular,
    });
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    Ok(archive.append_data(&mut header, name, bytes)?)
}

/// A part of an image, named by its hash.
struct Blob {
    kind: &'static str,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(kind: &'static str, bytes: Vec<u8>) -> Self {
        Self { kind, bytes }
    }

    fn json(kind: &'static str, value: &Value) -> Result<Self> {
        Ok(Self::new(kind, serde_json::to_vec(value)?))
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", digest(&self.bytes))
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.kind,
            "digest": format!("sha256:{}", digest(&self.bytes)),
            "size": self.bytes.len(),
        })
    }
}

/// Has skopeo inspect the layout and copy the tar file, which reads every blob; gives what it saw.
fn check(directory: &Path, tag: &str) -> Result<String> {
    let place = |kind: &str, name: &str| format!("{kind}:{}:{tag}", directory.join(name).display());
    let skopeo = |arguments: &[&str]| {
        command::output(Command::new("skopeo").args(arguments))
            .context("skopeo checks the image; `cargo xtask setup` installs it")
    };
    let seen = skopeo(&["inspect", &place("oci", "image")])?;
    let copy = directory.join("copy");
    let copied = skopeo(&[
        "--insecure-policy",
        "copy",
        "--quiet",
        &place("oci-archive", "image.tar"),
        &place("oci", "copy"),
    ])
    .and_then(|_| skopeo(&["inspect", &place("oci", "copy")]));
    if copy.exists() {
        fs::remove_dir_all(&copy)?;
    }
    let digest_of = |text: &str| {
        let value: Value = serde_json::from_str(text)?;
        anyhow::Ok(value["Digest"].clone())
    };
    if digest_of(&seen)? != digest_of(&copied?)? {
        bail!("image/ and image.tar are not the same image");
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn facts() -> Facts {
        Facts {
            version: "1.2.3".to_owned(),
            revision: Some("0123abcd".to_owned()),
            created: "2026-11-21T10:45:00Z".to_owned(),
        }
    }

    /// The blob of a descriptor, whose hash and size must be right.
    fn follow<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let hash = descriptor["digest"]
            .as_str()
            .unwrap()
            .strip_prefix("sha256:")
            .unwrap();
        let bytes = &files[&format!("blobs/sha256/{hash}")];
        assert_eq!(digest(bytes), hash);
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    }

    #[test]
    fn every_reference_in_the_layout_leads_to_what_it_says() {
        let files = layout(b"binary", &facts()).unwrap();
        assert_eq!(files, layout(b"binary", &facts()).unwrap(), "other bytes");
        let files: BTreeMap<String, Vec<u8>> = files.into_iter().collect();
        let read = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).unwrap() };
        assert_eq!(read(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
        let index = read(&files["index.json"]);
        let entry = &index["manifests"][0];
        assert_eq!(
            entry["annotations"]["org.opencontainers.image.ref.name"],
            "1.2.3"
        );
        let manifest = read(follow(&files, entry));
        let config = read(follow(&files, &manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/agent"]));
        let labels = &config["config"]["Labels"];
        assert_eq!(labels["org.opencontainers.image.revision"], "0123abcd");
        let mut tar = Vec::new();
        let layer = follow(&files, &manifest["layers"][0]);
        flate2::read::GzDecoder::new(layer)
            .read_to_end(&mut tar)
            .unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", digest(&tar))
        );
        let mut archive = tar::Archive::new(tar.as_slice());
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let path = entry.path().unwrap().display().to_string();
                (
                    path,
                    header.mode().unwrap(),
                    header.uid().unwrap(),
                    header.mtime().unwrap(),
                )
            })
            .collect();
        let expected = [
            ("agent".to_owned(), 0o755, 0, 0),
            ("tmp/".to_owned(), 0o1777, 0, 0),
        ];
        assert_eq!(entries, expected);
    }

    #[test]
    fn skopeo_reads_the_layout_and_the_archive() {
        if command::find("skopeo").is_none() {
            println!("not checked: there is no skopeo; `cargo xtask setup` installs it");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), b"binary", &facts()).unwrap();
        // Again, over what is there.
        write(directory.path(), b"another", &facts()).unwrap();
        let seen: Value = serde_json::from_str(&check(directory.path(), "1.2.3").unwrap()).unwrap();
        assert_eq!(seen["Labels"]["org.opencontainers.image.title"], "agent");
        assert_eq!(
            (&seen["Architecture"], &seen["Os"]),
            (&json!("amd64"), &json!("linux"))
        );
        let layer = directory.path().join("image/blobs/sha256");
        for blob in fs::read_dir(layer).unwrap() {
            fs::write(blob.unwrap().path(), b"{}").unwrap();
        }
        assert!(
            check(directory.path(), "1.2.3").is_err(),
            "a damaged image passes"
        );
    }
}
