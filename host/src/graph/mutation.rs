//! Rules that a test breaks, one at a time, to see that it is noticed. Outside of tests none is.

/// A rule of the core, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only tests break rules"))]
pub(crate) enum Mutation {
    /// A guest's change marks nothing.
    MarksNothing,
    /// A guest's change marks when it has ended.
    MarksAfterCompletion,
    /// Discards mark nothing.
    DiscardsDoNotMark,
    /// Nothing above the class of a change is marked.
    MarksOneClass,
    /// A proven write marks the class that it enters, and none in between or beside.
    ProofExemptsTooMuch,
    /// A watch begins when the bytes have been read.
    WatchesAfterReading,
    /// A watch is never stale.
    WatchesNothing,
    /// What is stale is written as a plain change.
    DowngradesClaims,
    /// What a failed proven write exempted stays clean.
    KeepsVoidProofs,
    /// A proven write stales nobody's watch.
    ProvenWritesStaleNothing,
    /// Copies hold nobody off.
    TakesNoGuards,
    /// Zeros need not be the backing's.
    ForgetsTheBacking,
    /// Bitmaps change while requests are in flight.
    DrainsNothing,
    /// Graphs in which copies can wait for each other for ever.
    AllowsAnyOrder,
    /// A tracker is cleared before its copy has settled.
    ClearsBeforeSettling,
    /// A tracker does not see what comes to its target.
    TrustsTheTarget,
    /// A freeze that is undone yields what was frozen alone.
    RollsBackByReplacement,
    /// What a mapping leads to is durable after the mapping.
    MapsBeforeData,
    /// What stands on a filter's child, beside the filter, is not marked.
    ForgetsTheIdentityChild,
    /// A watch does not see what was in flight when it began.
    ForgetsChangesInFlight,
    /// A change that enters below the node watched and guarded is not seen there.
    ForgetsChangesBelow,
    /// Discards end no watches and wait for no guards.
    DiscardsStaleNothing,
    /// Graph changes end no watches.
    GraphChangesStaleNothing,
    /// A failed proven write ends no watches.
    FailedWritesStaleNothing,
    /// A guard ends before its write does, as if its time were up.
    GuardsEndWithTime,
    /// A guard ends with the future that asked for the copy.
    GuardsEndWithFutures,
    /// A bitmap is added while changes are in flight.
    AddsUndrained,
    /// A bitmap is cleared while changes are in flight.
    ClearsUndrained,
    /// A bitmap is enabled while changes are in flight.
    EnablesUndrained,
    /// A bitmap is frozen while changes are in flight.
    FreezesUndrained,
    /// What a graph change claims is looked at before requests have ended.
    ChecksBeforeTheDrain,
    /// A node that gets smaller marks nothing.
    ShrinksUnmarked,
    /// What a driver may have spoiled that failed half-way is not marked.
    FailedWorkUnmarked,
    /// An overlay that gets another backing marks nothing.
    ReopensUnmarked,
    /// Guards and watches are told what a change writes, and not what a driver fills around it.
    ForgetsFills,
    /// Zeros are proven without a guard.
    ZeroesUnguarded,
    /// By its rules a plugin is never asked.
    RulesLetAllPass,
    /// A plugin that has failed begins without its bitmaps.
    FaultsForgetBitmaps,
    /// What a plugin has flushed is not durable.
    PluginsFlushNothing,
    /// Proven writes mark all that they enter, as if nothing were known of them.
    ProofsExemptNothing,
    /// A backup does not copy what is about to be overwritten.
    BackupsKeepNothing,
    /// What a backup that has failed was to copy counts as copied.
    FailedBackupsCountAsDone,
    /// A job's target takes its source's place with what is left uncopied.
    EndsWithoutCatchingUp,
    /// What a job has copied is not made durable before its target takes its source's place.
    PivotsUnflushed,
    /// Evidence counts though something has been copied since it was found.
    KeepsVoidEvidence,
}

#[cfg(test)]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

/// Breaks a rule on this thread, or none.
#[cfg(test)]
pub(in crate::graph) fn set(mutation: Option<Mutation>) {
    BROKEN.set(mutation);
}

/// Whether the rule is broken.
#[cfg(test)]
pub(crate) fn mutated(mutation: Mutation) -> bool {
    BROKEN.get() == Some(mutation)
}

/// Whether the rule is broken: never.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn mutated(_: Mutation) -> bool {
    false
}
