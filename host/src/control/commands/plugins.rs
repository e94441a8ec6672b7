//! Plugins: what there are, and others in the place of those that run.

use serde_json::Value;

use crate::block_on;
use crate::control::context::Context;
use crate::control::error::{QmpError, QmpResult};
use crate::control::qapi::{clip, qapi_enum, qapi_struct};
use crate::control::registry::{Empty, Registry};
use crate::host::{LoadedPlugin, PluginBinary};
use crate::plugin::{Phase, PluginCounters};

qapi_struct! {
    pub(crate) struct PluginLoad {
        /// A file that ends in `.wasm`, or a bundled plugin's name.
        plugin: String,
    }
}

qapi_struct! {
    /// What a plugin wants to do to a child.
    pub(crate) struct PluginChildInfo {
        name: String,
        required: bool,
        /// Of its own accord.
        wants: Vec<String>,
        /// Nobody else may change what it shows.
        exclusive: bool,
    }
}

qapi_enum! {
    /// What an instance is at.
    pub(crate) enum PluginInstanceState {
        Running = "running",
        /// It failed, and starts again.
        Restarting = "restarting",
        Reloading = "reloading",
        /// It failed for good: requests go to the filtered child.
        Bypassed = "bypassed",
        /// It failed for good: requests fail.
        Failed = "failed",
    }
}

qapi_struct! {
    /// A plugin that runs, and the nodes that it serves.
    pub(crate) struct PluginInstanceInfo {
        /// What it is called, if several nodes may share it.
        instance: Option<String>,
        nodes: Vec<String>,
        state: PluginInstanceState,
        /// Why it is out of service.
        failure: Option<String>,
        restarts: u64,
        reloads: u64,
        /// Requests that it was asked about.
        asked: u64,
        /// Requests that went on by its rules.
        passed: u64,
        faults: u64,
        /// Faults that broke the protocol.
        violations: u64,
        /// Claims refused, as the bytes may have changed since.
        claims_stale: u64,
        /// Claims refused without a proof.
        claims_not_proven: u64,
    }
}

qapi_struct! {
    /// A plugin.
    pub(crate) struct PluginInfo {
        /// The file, or the name of a bundled one.
        plugin: String,
        /// What it calls itself.
        name: String,
        version: String,
        /// The contract that it speaks.
        abi: String,
        children: Vec<PluginChildInfo>,
        /// Points in time that it shows.
        views: Vec<String>,
        /// It does work of its own.
        has_job: bool,
        /// Requests may go by it if it fails.
        may_bypass: bool,
        /// Where it runs.
        instances: Vec<PluginInstanceInfo>,
    }
}

qapi_struct! {
    /// Another plugin, or another configuration, in the place of one that runs.
    pub(crate) struct PluginReload {
        /// A node that it serves, or the instance's name.
        node: String,
        /// Where the other one is; the present one's own file unless said.
        file: Option<String>,
        /// Its configuration; the present one unless said. Alone, it is given to the plugin that runs.
        config: Option<Value>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.command("plugin-load", load);
    to.command("plugin-reload", reload);
    to.command("query-plugins", query);
}

/// Compiles a plugin and keeps it for nodes that are added later.
fn load(context: &Context<'_>, load: PluginLoad) -> QmpResult<PluginInfo> {
    let loaded = context.host.load_plugin(&load.plugin)?;
    Ok(info(loaded))
}

fn reload(context: &Context<'_>, reload: PluginReload) -> QmpResult<Empty> {
    let PluginReload { node, file, config } = reload;
    let config = config.map(|config| config.to_string());
    let reloaded = match (file, config) {
        (None, Some(config)) => block_on(context.host.reconfigure_plugin(&node, &config)),
        (file, config) => {
            let file = match file {
                Some(file) if file.contains('\0') => {
                    let desc = format!("Parameter 'file' is no path: '{}'", clip(&file));
                    return Err(QmpError::generic(desc));
                }
                Some(file) => Some(context.host.base_dir().join(file)),
                None => context.host.plugin_file(&node)?,
            };
            let desc = "the plugin comes with the host: say which 'file' is to take its place";
            let file = file.ok_or_else(|| QmpError::generic(desc))?;
            block_on(context.host.reload_plugin(&node, PluginBinary::File(file), config.as_deref()))
        }
    };
    reloaded?;
    Ok(Empty {})
}

fn query(context: &Context<'_>, _: Empty) -> QmpResult<Vec<PluginInfo>> {
    Ok(context.host.plugins().into_iter().map(info).collect())
}

fn info(loaded: LoadedPlugin) -> PluginInfo {
    let LoadedPlugin { module, instances } = loaded;
    let inspection = module.inspection();
    let children = inspection.children.iter().map(|child| PluginChildInfo {
        name: child.name.clone(),
        required: child.required,
        wants: child.wants.names().map(str::to_owned).collect(),
        exclusive: child.exclusive,
    });
    let instance = |(instance, nodes): (std::sync::Arc<crate::plugin::Instance>, Vec<String>)| {
        let PluginCounters { asked, passed, stale, not_proven, violations, faults, .. } =
            instance.counters();
        PluginInstanceInfo {
            instance: instance.name().map(str::to_owned),
            nodes,
            state: match instance.phase() {
                Phase::Running => PluginInstanceState::Running,
                Phase::Down => PluginInstanceState::Restarting,
                Phase::Reloading => PluginInstanceState::Reloading,
                Phase::Bypassed => PluginInstanceState::Bypassed,
                Phase::Failed => PluginInstanceState::Failed,
            },
            failure: instance.failure(),
            restarts: instance.restarts().into(),
            reloads: instance.reloads().into(),
            asked,
            passed,
            faults,
            violations,
            claims_stale: stale,
            claims_not_proven: not_proven,
        }
    };
    PluginInfo {
        plugin: module.name().to_owned(),
        name: inspection.name.clone(),
        version: inspection.version.clone(),
        abi: inspection.abi.to_owned(),
        children: children.collect(),
        views: inspection.views.clone(),
        has_job: inspection.has_job,
        may_bypass: inspection.may_bypass,
        instances: instances.into_iter().map(instance).collect(),
    }
}
