//! The rules of nodes, as one worker has them.

use std::rc::Rc;

use blockloom_abi::NodeIndex;

use super::super::rules::{KeptRules, NodeRules};
use super::LocalPlugin;

/// A node's rules, as a worker has them: until the next turn after they have changed, those before.
pub(super) struct Ruled {
    node: NodeIndex,
    generation: u64,
    set: Option<Rc<KeptRules>>,
}

impl LocalPlugin {
    /// The rules of a node now. Whoever passes by them keeps them until the child has ended it.
    #[inline]
    pub(in crate::plugin) fn rules(&self, of: &NodeRules) -> Rc<KeptRules> {
        let mut rules = self.rules.borrow_mut();
        let known = rules.iter_mut().find(|known| known.node == of.node());
        if let Some(Ruled { generation, set: Some(set), .. }) = &known
            && *generation == of.generation()
        {
            return Rc::clone(set);
        }
        let (generation, set) = of.current();
        let set = Rc::new(KeptRules(set));
        let former = match known {
            Some(known) => {
                known.generation = generation;
                known.set.replace(Rc::clone(&set))
            }
            None => {
                let set = Some(Rc::clone(&set));
                rules.push(Ruled { node: of.node(), generation, set });
                None
            }
        };
        drop(rules);
        drop(former);
        set
    }

    /// Requests that the guest has not answered go by the rules that are.
    pub(super) fn requests_go_by_new_rules(&self) {
        let mut unanswered = Vec::new();
        for (index, place) in self.waiters.borrow().places.iter().enumerate() {
            let is_unanswered = place.sequence != 0 && place.verdict.is_none();
            if let (true, Some(rules)) = (is_unanswered, &place.rules) {
                unanswered.extend(rules.home().map(|home| (index, home)));
            }
        }
        for (index, home) in unanswered {
            let present = self.rules(&home);
            let former = self.waiters.borrow_mut().places[index].rules.replace(present);
            drop(former);
        }
    }

    /// Lets go of rules that are no more.
    pub(super) fn refresh_rules(&self) {
        let lasting = self.instance.lasting();
        let mut former = Vec::new();
        for known in self.rules.borrow_mut().iter_mut() {
            let is_current = |of: &NodeRules| of.generation() == known.generation;
            if !lasting.rules_of(known.node).is_some_and(|of| is_current(&of)) {
                // Not those to come: nobody may ask for a long time.
                known.generation = u64::MAX;
                former.extend(known.set.take());
            }
        }
    }
}
