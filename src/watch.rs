//! Notices that files have other content, by reading them: an edit in place, a rename and a swapped symbolic link
//! (Kubernetes' `..data`) all look the same, on every file system.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};

/// Time between two looks. What changed is taken when the next look finds the same: nobody is still writing.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// SHA-256 of a file's content; `None`: it cannot be read, or is no regular file. A pipe, which gives its content once,
/// never changes.
pub type Content = Option<[u8; 32]>;

/// Files, and the content they are known to have.
#[derive(Debug, Default)]
pub struct Watch {
    known: BTreeMap<PathBuf, Content>,
    /// What the last look found, if it was something else.
    settling: Option<BTreeMap<PathBuf, Content>>,
}

impl Watch {
    /// Nothing to look at yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Watches these files from now on. What is known about those watched already stays.
    pub fn follow(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        let mut former = std::mem::take(&mut self.known);
        self.known = files
            .into_iter()
            .map(|path| {
                let content = former.remove(&path).unwrap_or_else(|| content(&path));
                (path, content)
            })
            .collect();
    }

    /// Takes what the files hold now for known. To be called before they are read, so that no change is missed.
    pub fn mark(&mut self) {
        self.known = self.look();
        self.settling = None;
    }

    /// Completes when the content of a file has changed and has settled.
    pub async fn changed(&mut self) {
        if self.known.is_empty() {
            std::future::pending::<()>().await;
        }
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.has_changed() {
                return;
            }
        }
    }

    fn has_changed(&mut self) -> bool {
        let found = self.look();
        if found == self.known {
            self.settling = None;
            return false;
        }
        let settled = self.settling.as_ref() == Some(&found);
        self.settling = Some(found);
        settled
    }

    fn look(&self) -> BTreeMap<PathBuf, Content> {
        self.known.keys().map(|path| (path.clone(), content(path))).collect()
    }
}

/// What a file holds now.
#[must_use]
pub fn content(path: &Path) -> Content {
    // Opening a pipe would wait for a writer.
    let regular = fs::metadata(path).ok().filter(fs::Metadata::is_file);
    regular.and_then(|_| fs::read(path).ok()).map(|bytes| Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_reported_once_it_has_settled_and_only_until_it_is_known() {
        let folder = std::env::temp_dir().join(format!("tidegate-watch-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (file, absent) = (folder.join("file"), folder.join("absent"));
        fs::write(&file, "one").unwrap();
        let mut watch = Watch::new();
        watch.follow([file.clone(), absent.clone()]);
        assert!(!watch.has_changed());
        fs::write(&file, "tw").unwrap();
        assert!(!watch.has_changed(), "somebody may still be writing");
        fs::write(&file, "two").unwrap();
        assert!(!watch.has_changed(), "somebody is");
        assert!(watch.has_changed());
        watch.mark();
        assert!(!watch.has_changed());
        fs::write(&file, "three").unwrap();
        assert!(!watch.has_changed());
        fs::write(&file, "two").unwrap();
        assert!(!watch.has_changed() && !watch.has_changed(), "it is as it was");
        fs::write(&absent, "here").unwrap();
        assert!(!watch.has_changed() && watch.has_changed(), "a file that appears is a change");
        watch.follow([file.clone()]);
        watch.mark();
        fs::remove_file(&file).unwrap();
        assert!(!watch.has_changed() && watch.has_changed(), "so is one that goes");
        fs::remove_dir_all(&folder).unwrap();
    }
}
