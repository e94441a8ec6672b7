//! What a new image is told of the files beside it, so that other programs find them, too.

use std::path::{Path, absolute};

use super::qcow2_checks::file_of;
use super::qcow2_options::{BackingFormat, BackingReference};
use super::spec::{DriverSpec, FileSpec, GraphSpec, NodeSpec};
use crate::node::name_of;

impl GraphSpec {
    /// What the image that is made for `node`, a `qcow2` node, is to name as its backing: what `create` says,
    /// else the plain file below its backing, by its name if it is in the directory of the image, else by its
    /// absolute path. `None`: no other program could find the backing by a name.
    pub fn backing_reference(&self, node: &NodeSpec, base_dir: &Path) -> Option<BackingReference> {
        let DriverSpec::Qcow2(image) = &node.driver else { return None };
        let create = image.create.as_ref()?;
        let backing = node.children.iter().find(|child| child.name.value == "backing")?;
        let found = self.node(&backing.node.value).and_then(|backing| self.stored_in(backing));
        let name = match (&create.backing_file, found) {
            (Some(name), _) => name.value.clone(),
            (None, Some((file, _))) => self.name_beside(node, file, base_dir)?,
            (None, None) => return None,
        };
        let said = create.backing_format.as_ref().map(|format| format.value);
        let format = said.or_else(|| found.map(|(_, format)| format));
        Some(BackingReference { name, format: format.map(|format| format.name().to_owned()) })
    }

    /// The plain file that holds the image of `node`.
    pub fn image_file(&self, node: &NodeSpec) -> Option<&FileSpec> {
        file_of(self, node, "file")
    }

    /// The plain file that holds the data of the image of `node`.
    pub fn image_data_file(&self, node: &NodeSpec) -> Option<&FileSpec> {
        file_of(self, node, "data-file")
    }

    /// What that image is to name as its external data file; `None` without one, or if it is no plain file.
    pub fn data_file_name(&self, node: &NodeSpec, base_dir: &Path) -> Option<String> {
        self.name_beside(node, file_of(self, node, "data-file")?, base_dir)
    }

    /// The file from which another program could show what `node` shows, and its format.
    fn stored_in(&self, node: &NodeSpec) -> Option<(&FileSpec, BackingFormat)> {
        match &self.node(&node.name.value)?.driver {
            DriverSpec::File(file) => Some((file, BackingFormat::Raw)),
            DriverSpec::Qcow2(_) => Some((file_of(self, node, "file")?, BackingFormat::Qcow2)),
            DriverSpec::Raw(raw) if !raw.is_section() => {
                Some((file_of(self, node, "file")?, BackingFormat::Raw))
            }
            DriverSpec::Filter(_) => {
                let child = node.children.iter().find(|child| child.name.value == "file")?;
                self.stored_in(self.node(&child.node.value)?)
            }
            _ => None,
        }
    }

    fn name_beside(&self, node: &NodeSpec, file: &FileSpec, base_dir: &Path) -> Option<String> {
        let path = file.path_in(base_dir);
        let image = file_of(self, node, "file").map(|image| image.path_in(base_dir));
        if image.is_some_and(|image| image.parent() == path.parent()) {
            return name_of(Path::new(path.file_name()?));
        }
        absolute(&path).ok()?.to_str().map(str::to_owned)
    }
}
