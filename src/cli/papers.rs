//! What is printed and not run: completions, the manual, the schema, a configuration to start from.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{Args, CommandFactory, ValueHint};
use clap_complete::Shell;

use super::{Cli, DONE, FAILED, USAGE, fail, say, words::PresetName};
use crate::config::{Config, Overrides, init};

/// Arguments of `tidegate completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidegate completions bash > /etc/bash_completion.d/tidegate
  tidegate completions zsh > ~/.zfunc/_tidegate
  tidegate completions fish > ~/.config/fish/completions/tidegate.fish")]
pub(super) struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

/// Arguments of `tidegate man`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidegate man | man -l -
  tidegate man --dir /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Write one page per command into this folder, instead of the main page to standard output
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

/// Arguments of `tidegate init`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidegate init --preset openai                     writes tidegate.yaml
  tidegate init --preset anthropic anthropic.yaml
  tidegate init --upstream https://llm.internal -   prints it")]
pub(super) struct InitArgs {
    /// File to write; `-`: standard output
    #[arg(default_value = "tidegate.yaml", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// For which provider: openai, anthropic, gemini, … [default: by the upstream's host, else generic]
    #[arg(long, value_name = "NAME", value_parser = PresetName, hide_possible_values = true)]
    preset: Option<String>,
    /// The API's URL, instead of the one the provider is known by
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
}

pub(super) fn completions(args: &CompletionsArgs) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tidegate", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    let is_bash = args.shell == Shell::Bash;
    say(&if is_bash { ["check", "init"].into_iter().fold(script, offering_files) } else { script })
}

/// The generator for Bash offers options where a file comes first.
fn offering_files(script: String, command: &str) -> String {
    let Some((before, rest)) = script.split_once(&format!("\n        tidegate__subcmd__{command})\n")) else {
        return script;
    };
    let Some((block, after)) = rest.split_once("\n            ;;\n") else { return script };
    let block = block.replace(" || ${COMP_CWORD} -eq 2 ]]", " ]]");
    let (first, last) = block.rsplit_once("compgen -W \"${opts}\"").unwrap_or((&block, ""));
    format!("{before}\n        tidegate__subcmd__{command})\n{first}compgen -f{last}\n            ;;\n{after}")
}

pub(super) fn man(args: &ManArgs) -> u8 {
    let written = match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir)).map(|()| DONE)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).map(|()| say(&String::from_utf8_lossy(&page)))
        }
    };
    match written {
        Ok(said) => said,
        Err(error) => {
            let dir = args.dir.as_deref().unwrap_or(Path::new("-")).display();
            fail(FAILED, &format_args!("man: {dir}: {error}"))
        }
    }
}

pub(super) fn schema() -> u8 {
    say(&format!("{:#}\n", crate::config::schema()))
}

pub(super) fn init(args: &InitArgs) -> u8 {
    // Everything that is wrong with a URL or a preset has its message already.
    let url = args.upstream.as_deref().unwrap_or("https://api.example.com");
    let overrides = Overrides { upstream: Some(url.to_owned()), preset: args.preset.clone(), ..Overrides::default() };
    let preset = match Config::build(None, &overrides, &|_| None) {
        Ok(config) => config.upstreams.first().map(|upstream| upstream.preset),
        Err(error) => return fail(USAGE, &format_args!("init: {error}")),
    };
    let text = init::file(preset.unwrap_or(crate::config::DEFAULT_PRESET), args.upstream.as_deref());
    if args.file == Path::new("-") {
        return say(&text);
    }
    let file = args.file.display();
    match write(&args.file, &text, args.force) {
        Ok(()) => say(&format!(
            "wrote {file}; next: set a tier or a ceiling in it, `tidegate check {file}`, `tidegate --config {file}`\n"
        )),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fail(FAILED, &format_args!("init: {file} is there already; --force replaces it, another name spares it"))
        }
        Err(error) => fail(FAILED, &format_args!("init: {file}: {error}")),
    }
}

fn write(file: &Path, text: &str, force: bool) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(force).create_new(!force);
    options.open(file)?.write_all(text.as_bytes())
}
