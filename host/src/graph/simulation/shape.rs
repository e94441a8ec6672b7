//! The graph as the scenario knows it: who stands on whom. Not a word of it comes from the core.

use std::collections::BTreeMap;

/// How a node shows its child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Filtered,
    Backing,
}

/// What somebody looks at, or a bitmap records.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum View {
    Drive(String),
    Node(String),
}

/// How a change at one node shows at a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shows {
    Not,
    /// Where the view has no bytes of its own.
    Through,
    Fully,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    children: BTreeMap<String, (String, Link)>,
    roots: BTreeMap<String, String>,
}

impl Shape {
    pub(super) fn stand(&mut self, node: &str, child: &str, link: Link) {
        self.children.insert(node.to_owned(), (child.to_owned(), link));
    }

    pub(super) fn set_root(&mut self, drive: &str, node: &str) {
        self.roots.insert(drive.to_owned(), node.to_owned());
    }

    pub(super) fn root(&self, drive: &str) -> &str {
        self.roots.get(drive).map_or("", String::as_str)
    }

    /// Whoever stands on `node` stands on `other` instead, but for `other` itself.
    pub(super) fn repoint(&mut self, node: &str, other: &str) {
        for root in self.roots.values_mut().filter(|root| *root == node) {
            other.clone_into(root);
        }
        for (parent, (child, _)) in &mut self.children {
            if child == node && parent != other {
                other.clone_into(child);
            }
        }
    }

    pub(super) fn remove(&mut self, node: &str) {
        self.children.remove(node);
    }

    /// The node and all that it stands on.
    pub(super) fn path(&self, node: &str) -> Vec<String> {
        let next = |node: &String| self.children.get(node).map(|(child, _)| child.clone());
        std::iter::successors(Some(node.to_owned()), next).collect()
    }

    pub(super) fn child(&self, node: &str) -> Option<&str> {
        self.children.get(node).map(|(child, _)| child.as_str())
    }

    pub(super) fn stands_on(&self, node: &str, below: &str) -> bool {
        self.path(node).iter().any(|it| it == below)
    }

    /// The node whose bytes it shows as they are: the same for a whole class.
    pub(super) fn store(&self, node: &str) -> String {
        let mut node = node;
        while let Some((child, Link::Filtered)) = self.children.get(node) {
            node = child;
        }
        node.to_owned()
    }

    pub(super) fn node_of<'a>(&'a self, view: &'a View) -> &'a str {
        match view {
            View::Drive(drive) => self.root(drive),
            View::Node(node) => node,
        }
    }

    /// How a change that enters at `node` shows at `view`.
    pub(super) fn shows(&self, node: &str, view: &View) -> Shows {
        let (changed, shown) = (self.store(node), self.node_of(view));
        match () {
            () if self.store(shown) == changed => Shows::Fully,
            () if self.path(shown).contains(&changed) => Shows::Through,
            () => Shows::Not,
        }
    }
}
