//! `datastore`: stores of text to draft from.

use std::ops::ControlFlow;
use std::path::Path;

use indicatif::ProgressBar;
use offshoot_engine::datastore::{
    BuildEvent, BuildOptions, BuildSummary, Builder, Datastore, DatastoreError, Libsais, Notes,
    SourceNote, SourceOptions, Sources, SuffixSorter, import_reference,
};
use offshoot_methods::{DraftNode, Match, Retriever, RetrieverOptions};
use offshoot_models::{Checkpoint, Special, Tokenizer, TokenizerId};
use serde_json::{Value, json};

use crate::args::{
    DatastoreBuildArgs, DatastoreCommand, DatastoreImportArgs, DatastoreQueryArgs, ModelArgs,
    StoreArgs, StoreOutputArgs,
};
use crate::failure::{Failure, note, say, say_json};
use crate::{interrupt, models, score};

pub(crate) fn run(command: &DatastoreCommand) -> Result<(), Failure> {
    match command {
        DatastoreCommand::Build(args) => build(args),
        DatastoreCommand::Inspect(args) => inspect(args),
        DatastoreCommand::Query(args) => query(args),
        DatastoreCommand::Verify(args) => verify(args),
        DatastoreCommand::Import(args) => import(args),
    }
}

fn build(args: &DatastoreBuildArgs) -> Result<(), Failure> {
    let checkpoint = checkpoint(&args.model)?;
    let mut sources = Sources::new(
        &checkpoint,
        SourceOptions {
            extensions: args.extension.clone(),
            share: args.shard,
            separator: args.store.separator,
        },
    )?;
    let share = args.shard.map(|share| format!("{}/{}", share.which + 1, share.of));
    let options = options(&args.store, &checkpoint, &args.sources, share)?;
    make(options, args.model.output.json, |builder| {
        args.exclude.iter().try_for_each(|path| sources.exclude(path, builder))?;
        for source in &args.sources {
            if sources.add(source, builder)?.is_break() {
                break;
            }
        }
        Ok(())
    })
}

fn import(args: &DatastoreImportArgs) -> Result<(), Failure> {
    let checkpoint = checkpoint(&args.model)?;
    let options = options(&args.store, &checkpoint, std::slice::from_ref(&args.file), None)?;
    make(options, args.model.output.json, |builder| {
        import_reference(&args.file, args.token_bits, args.store.separator, builder).map(drop)
    })
}

fn checkpoint(args: &ModelArgs) -> Result<Checkpoint, Failure> {
    Ok(Checkpoint::open(&models::resolve(args)?.path)?)
}

fn options(
    args: &StoreOutputArgs,
    checkpoint: &Checkpoint,
    sources: &[std::path::PathBuf],
    share: Option<String>,
) -> Result<BuildOptions, Failure> {
    let tokenizer = checkpoint.tokenizer()?;
    let note = |path: &std::path::PathBuf| SourceNote {
        name: path.display().to_string(),
        licence: args.licence.clone(),
    };
    Ok(BuildOptions {
        folder: args.output.clone(),
        append: args.append,
        tokenizer: TokenizerId::of(tokenizer),
        vocab_size: u32::try_from(tokenizer.tokens.len()).unwrap_or(u32::MAX),
        memory: args.memory,
        limit: args.token_limit,
        notes: Notes {
            built_by: concat!("offshoot ", env!("CARGO_PKG_VERSION")).to_owned(),
            sorter: Libsais.name().to_owned(),
            share,
            sources: sources.iter().map(note).collect(),
        },
    })
}

/// Builds a store of what `fill` adds, and tells of it.
fn make(
    options: BuildOptions,
    json: bool,
    fill: impl FnOnce(&mut Builder<'_>) -> Result<(), DatastoreError>,
) -> Result<(), Failure> {
    let listener = interrupt::listen();
    let folder = options.folder.clone();
    // Hidden where standard error is no terminal.
    let bar = ProgressBar::new_spinner();
    let mut on_event = |event: BuildEvent<'_>| {
        show(&bar, event);
        if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let result = Builder::new(options, &Libsais, &mut on_event).and_then(|mut builder| {
        fill(&mut builder)?;
        builder.finish()
    });
    bar.finish_and_clear();
    drop(listener);
    tell(&folder, &result?, json)
}

fn show(bar: &ProgressBar, event: BuildEvent<'_>) {
    let line = |line: String| bar.suspend(|| note(line));
    match event {
        BuildEvent::Read { documents, tokens } => {
            bar.set_message(format!("{documents} documents, {tokens} tokens"));
            bar.tick();
        }
        BuildEvent::Skipped { path, why } => line(format!("left out {}: {why}", path.display())),
        BuildEvent::Sorting { tokens } => {
            bar.set_message(format!("sorting {tokens} suffixes"));
            bar.tick();
        }
        BuildEvent::Written { path } => line(format!("wrote {}", path.display())),
        BuildEvent::Kept { path } => line(format!("{} is there already", path.display())),
        _ => {}
    }
}

fn tell(folder: &Path, summary: &BuildSummary, json: bool) -> Result<(), Failure> {
    if json {
        return say_json(&json!({
            "store": folder, "files": summary.files, "tokens": summary.tokens,
            "documents": summary.documents, "excluded": summary.excluded,
        }));
    }
    let excluded = match summary.excluded {
        0 => String::new(),
        n => format!(", {n} left out for passages of the excluded texts"),
    };
    note(format_args!(
        "{} tokens of {} documents are in {}{excluded}",
        summary.tokens,
        summary.documents,
        folder.display()
    ));
    Ok(())
}

fn inspect(args: &StoreArgs) -> Result<(), Failure> {
    let store = Datastore::open(&args.store)?;
    let files = store.files().iter().map(|file| {
        json!({
            "path": file.path(),
            "bytes": file.byte_len(),
            "tokens": file.tokens(),
            "documents": file.documents(),
            "token_bits": 8 * file.shard().parts().width.bytes(),
            "vocab_size": file.shard().vocab_size(),
            "tokenizer_id": file.tokenizer().to_string(),
            "notes": file.notes(),
        })
    });
    if args.output.json {
        let files: Vec<Value> = files.collect();
        return say_json(&json!({ "tokens": store.tokens(), "files": files }));
    }
    for (file, json) in store.files().iter().zip(files) {
        say(file.path().display())?;
        let lines = json.as_object().into_iter().flatten();
        for (name, value) in lines.filter(|(name, _)| !matches!(name.as_str(), "path" | "notes")) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            say(format_args!("  {name:<14} {text}"))?;
        }
        for source in &file.notes().sources {
            // A file from elsewhere may hold what a terminal would obey.
            let licence = source.licence.as_deref().unwrap_or("licence not given").escape_debug();
            say(format_args!("  {:<14} {} ({licence})", "source", source.name.escape_debug()))?;
        }
    }
    Ok(())
}

fn verify(args: &StoreArgs) -> Result<(), Failure> {
    let store = Datastore::open(&args.store)?;
    for file in store.files() {
        file.verify()?;
        if !args.output.json {
            note(format_args!("{} is sound", file.path().display()));
        }
    }
    match args.output.json {
        true => say_json(&json!({ "tokens": store.tokens(), "files": store.files().len() })),
        false => Ok(()),
    }
}

fn query(args: &DatastoreQueryArgs) -> Result<(), Failure> {
    let text = score::text_of(&args.text)?;
    let checkpoint = checkpoint(&args.model)?;
    let spec = checkpoint.tokenizer()?;
    let store = Datastore::open(&args.store)?;
    store.require_tokenizer(TokenizerId::of(spec))?;
    let tokenizer = Tokenizer::new(spec)?;
    let tokens = tokenizer.encode(&text, Special::Parse)?;
    let mut retriever =
        Retriever::new(RetrieverOptions::default()).map_err(offshoot_engine::Error::Method)?;
    let max_nodes = usize::from(args.max_nodes);
    let json = args.model.output.json;
    if let Some(contexts) = args.sample {
        return sample(&store, &mut retriever, &tokens, contexts as usize, max_nodes, json);
    }
    let mut nodes = Vec::new();
    let found = retriever.draft(&tokens, store.shards(), max_nodes, &mut nodes);
    let piece = |ids: &[u32]| {
        let bytes = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap_or(&[]));
        String::from_utf8_lossy(&bytes.copied().collect::<Vec<u8>>()).into_owned()
    };
    if json {
        return say_json(&draft_json(found, &nodes, |id| piece(&[id])));
    }
    let Some(found) = found else {
        return say("nothing matches");
    };
    let suffix = piece(&tokens[tokens.len() - found.len..]);
    say(format_args!("matched {} tokens, {} times: {suffix:?}", found.len, found.count))?;
    for i in in_order_of_text(&nodes) {
        let node = &nodes[i];
        say(format_args!(
            "{:>6.1} % {:>9} times behind {:>2} {}{:?}",
            100.0 * node.probability,
            node.support,
            node.matched,
            "  ".repeat(node.depth as usize),
            piece(&[node.token])
        ))?;
    }
    Ok(())
}

fn draft_json(found: Option<Match>, nodes: &[DraftNode], piece: impl Fn(u32) -> String) -> Value {
    let nodes: Vec<Value> = nodes
        .iter()
        .map(|node| {
            json!({
                "parent": node.parent, "token": node.token, "text": piece(node.token),
                "probability": node.probability, "support": node.support,
                "matched": node.matched, "depth": node.depth,
            })
        })
        .collect();
    json!({
        "matched": found.map_or(0, |found| found.len),
        "count": found.map_or(0, |found| found.count),
        "nodes": nodes,
    })
}

/// Places of the nodes, each behind its parent or what comes below an earlier child of it.
fn in_order_of_text(nodes: &[DraftNode]) -> Vec<usize> {
    let children =
        |parent: Option<usize>| (0..nodes.len()).rev().filter(move |&i| nodes[i].parent == parent);
    let mut order = Vec::with_capacity(nodes.len());
    let mut open: Vec<usize> = children(None).collect();
    while let Some(i) = open.pop() {
        order.push(i);
        open.extend(children(Some(i)));
    }
    order
}

fn sample(
    store: &Datastore,
    retriever: &mut Retriever,
    tokens: &[u32],
    contexts: usize,
    max_nodes: usize,
    json: bool,
) -> Result<(), Failure> {
    store.populate();
    let report = store.sample(retriever, tokens, contexts, max_nodes);
    let report = report
        .ok_or_else(|| Failure::Data("the text has no two tokens: give a longer one".to_owned()))?;
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    if json {
        return say_json(&json!({
            "store_tokens": store.tokens(), "contexts": report.contexts,
            "hit_rate": report.hit_rate, "matched": report.matched, "nodes": report.nodes,
            "accepted": report.accepted, "expected": report.expected,
            "p50_ms": ms(report.p50), "p95_ms": ms(report.p95), "longest_ms": ms(report.longest),
        }));
    }
    say(format_args!(
        "{} contexts: {:.1} % match, {:.1} tokens each; {:.1} drafted, {:.2} of them right \
         ({:.2} expected)",
        report.contexts,
        100.0 * report.hit_rate,
        report.matched,
        report.nodes,
        report.accepted,
        report.expected
    ))?;
    say(format_args!(
        "time of a draft: median {:.4} ms, 95 % within {:.4} ms, at most {:.4} ms",
        ms(report.p50),
        ms(report.p95),
        ms(report.longest)
    ))
}
