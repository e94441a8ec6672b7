//! Metadata contexts: which of an export's contexts a client lists or selects.

use super::export_info::{ExportInfo, is_wire_string};
use super::limits::{MAX_META_QUERIES, MAX_OPTION_REPLY_BYTES, MAX_SELECTED_CONTEXTS};
use super::option::{Fields, OptionError, push_reply};
use super::session::SelectedContext;
use super::wire;

/// Queries that stand for every context that starts with them. They list, but never select.
const WILDCARDS: [&str; 3] = ["base:", "qemu:", wire::CONTEXT_DIRTY_BITMAP_PREFIX];

/// Data of `OPT_LIST_META_CONTEXT` and `OPT_SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ContextRequest<'a> {
    pub(super) export: &'a str,
    queries: Vec<&'a str>,
}

impl<'a> ContextRequest<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, OptionError> {
        let mut fields = Fields(data);
        let export = fields.string()?;
        let count = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
        if count > MAX_META_QUERIES {
            return Err(OptionError::TooBig("more than 1024 metadata context queries"));
        }
        let queries = (0..count).map(|_| fields.string()).collect::<Result<_, _>>()?;
        if !fields.0.is_empty() {
            return Err(OptionError::Invalid("option data is longer than its fields say"));
        }
        Ok(Self { export, queries })
    }

    /// Whether a listing shows `context`.
    fn lists(&self, context: &str) -> bool {
        let matches = |query: &&str| {
            *query == context || (WILDCARDS.contains(query) && context.starts_with(*query))
        };
        self.queries.is_empty() || self.queries.iter().any(matches)
    }

    fn selects(&self, context: &str) -> bool {
        self.queries.contains(&context)
    }
}

/// Appends the replies that list contexts of `info`. Their id means nothing and is zero.
pub(super) fn push_listed(output: &mut Vec<u8>, request: &ContextRequest<'_>, info: &ExportInfo) {
    let start = output.len();
    let sendable = info.contexts.iter().filter(|context| is_wire_string(context));
    for context in sendable.filter(|context| request.lists(context)) {
        if output.len() - start > MAX_OPTION_REPLY_BYTES {
            break;
        }
        push_context(output, wire::OPT_LIST_META_CONTEXT, 0, context);
    }
}

/// What a client selected last, by name: the export's list of contexts may change until it is opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    export: String,
    contexts: Vec<String>,
}

impl Selection {
    /// What `request` selects of `info`: an unknown or wildcard query selects nothing.
    pub(super) fn new(
        request: &ContextRequest<'_>,
        info: &ExportInfo,
    ) -> Result<Self, OptionError> {
        let chosen = info.contexts.iter().filter(|context| request.selects(context));
        let contexts: Vec<_> = chosen.take(MAX_SELECTED_CONTEXTS + 1).cloned().collect();
        if contexts.len() > MAX_SELECTED_CONTEXTS {
            return Err(OptionError::TooBig("more than 256 metadata contexts selected"));
        }
        Ok(Self { export: request.export.to_owned(), contexts })
    }

    pub(super) fn push(&self, output: &mut Vec<u8>) {
        for (id, context) in (1..).zip(&self.contexts) {
            push_context(output, wire::OPT_SET_META_CONTEXT, id, context);
        }
    }

    /// The selection as it applies to `info`, opened by the name `export`: empty if it was made for
    /// another name, an error if a selected context is gone, because the client counts on it.
    pub(super) fn resolve(
        &self,
        export: &str,
        info: &ExportInfo,
    ) -> Result<Vec<SelectedContext>, OptionError> {
        if self.export != export {
            return Ok(Vec::new());
        }
        let find = |(id, context)| match info.contexts.iter().position(|other| other == context) {
            Some(index) => Ok(SelectedContext { id, index }),
            None => Err(OptionError::Unknown(format!(
                "metadata context '{context:.80}' is gone; select contexts again"
            ))),
        };
        (1..).zip(&self.contexts).map(find).collect()
    }
}

fn push_context(output: &mut Vec<u8>, option: u32, id: u32, context: &str) {
    push_reply(output, option, wire::REP_META_CONTEXT, &[&id.to_be_bytes(), context.as_bytes()]);
}

#[cfg(test)]
mod tests {
    use super::super::transcript::{bytes, export};
    use super::*;

    fn check_parse(data: &str, expected: Result<(&str, &[&str]), OptionError>) {
        let expected =
            expected.map(|(export, queries)| ContextRequest { export, queries: queries.to_vec() });
        assert_eq!(ContextRequest::parse(&bytes(data)), expected, "{data}");
    }

    #[test]
    fn request_is_parsed_to_the_byte() {
        let truncated = || Err(OptionError::Invalid("option data is shorter than its fields say"));
        check_parse("00000000 00000000", Ok(("", &[])));
        check_parse("00000001 'd' 00000002 00000000 00000002 'a:'", Ok(("d", &["", "a:"])));
        check_parse("", truncated());
        check_parse("00000001 'd'", truncated());
        check_parse("00000001 'd' 00000001", truncated());
        check_parse("00000001 'd' 00000001 00000003 'a:'", truncated());
        check_parse("00000001 'd' 00000001 ffffffff 'a:'", truncated());
        check_parse("00000001 'd' 00000400 00000002 'a:'", truncated());
        check_parse(
            "00000001 'd' 00000401 00000002 'a:'",
            Err(OptionError::TooBig("more than 1024 metadata context queries")),
        );
        check_parse(
            "00000001 'd' 00000000 00",
            Err(OptionError::Invalid("option data is longer than its fields say")),
        );
        check_parse(
            "00000001 'd' 00000001 00000001 ff",
            Err(OptionError::Invalid("string is not UTF-8")),
        );
    }

    #[test]
    fn queries_list_and_select() {
        let contexts = [
            "base:allocation",
            "qemu:allocation-depth",
            "qemu:dirty-bitmap:a",
            "qemu:dirty-bitmap:a:",
        ];
        let check = |queries: &[&str], listed: &[usize], selected: &[usize]| {
            let request = ContextRequest { export: "d", queries: queries.to_vec() };
            let picked = |pick: &dyn Fn(&str) -> bool| -> Vec<usize> {
                (0..contexts.len()).filter(|&index| pick(contexts[index])).collect()
            };
            assert_eq!(picked(&|context| request.lists(context)), listed, "list {queries:?}");
            assert_eq!(picked(&|context| request.selects(context)), selected, "set {queries:?}");
        };
        check(&[], &[0, 1, 2, 3], &[]);
        check(&["base:"], &[0], &[]);
        check(&["qemu:"], &[1, 2, 3], &[]);
        check(&["qemu:dirty-bitmap:"], &[2, 3], &[]);
        check(&["base:allocation"], &[0], &[0]);
        check(&["qemu:dirty-bitmap:a"], &[2], &[2]);
        check(&["qemu:dirty-bitmap:a:"], &[3], &[3]);
        check(&["base:", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:a"], &[0, 2], &[2]);
        for unknown in ["", ":", "base", "base:x", "BASE:", "x-y:z", "qemu:dirty-bitmap", "qemu:d"]
        {
            check(&[unknown], &[], &[]);
        }
    }

    #[test]
    fn selection_follows_the_contexts_of_the_export_that_is_opened() {
        let request = ContextRequest {
            export: "d",
            queries: vec!["qemu:dirty-bitmap:b", "base:allocation", "none:such"],
        };
        let info = |contexts: &[&str]| {
            let mut info = export("d");
            info.contexts = contexts.iter().map(|&context| context.to_owned()).collect();
            info
        };
        let before = info(&["base:allocation", "qemu:dirty-bitmap:b"]);
        let selection = Selection::new(&request, &before).expect("two contexts");
        let check = |name: &str, contexts: &[&str], expected: Option<&[(u32, usize)]>| {
            let found = selection.resolve(name, &info(contexts)).ok();
            let expected = expected.map(|pairs| {
                pairs.iter().map(|&(id, index)| SelectedContext { id, index }).collect::<Vec<_>>()
            });
            assert_eq!(found, expected, "{name} {contexts:?}");
        };
        check("d", &["base:allocation", "qemu:dirty-bitmap:b"], Some(&[(1, 0), (2, 1)]));
        check("d", &["qemu:dirty-bitmap:b", "x", "base:allocation"], Some(&[(1, 2), (2, 0)]));
        check("d", &["base:allocation"], None);
        check("", &["base:allocation"], Some(&[]));
    }

    #[test]
    fn selection_is_bounded() {
        let check = |count: usize, fits: bool| {
            let contexts: Vec<String> = (0..count).map(|n| format!("x-n:{n}")).collect();
            let queries = contexts.iter().map(String::as_str).collect();
            let request = ContextRequest { export: "d", queries };
            let info = ExportInfo { contexts: contexts.clone(), ..export("d") };
            assert_eq!(Selection::new(&request, &info).is_ok(), fits, "{count}");
        };
        check(MAX_SELECTED_CONTEXTS, true);
        check(MAX_SELECTED_CONTEXTS + 1, false);
    }
}
