//! Compiles the bundled plugins and embeds them.

fn main() {
    if let Err(error) = blockloom_plugin_build::bundle() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
