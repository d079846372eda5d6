// `diffused pull`: what is needed of a hub's repository, downloaded.

public import ArgumentParser
internal import Foundation
public import Hub
internal import Serving
internal import StableDiffusion

extension RepositoryName: ExpressibleByArgument {
    /// Reads `REPO` or `REPO@REVISION`.
    public init?(argument: String) {
        self.init(argument)
    }
}

extension WeightVariant: ExpressibleByArgument {}

/// Downloads a model.
struct PullCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pull",
        abstract: "Downloads what is needed of a model on the Hugging Face hub, and prints where it is.",
        discussion: """
            What is there already is not downloaded again, and a download that broke goes on where it ended. HF_ENDPOINT names another hub or a mirror, \
            HF_TOKEN a token for what not everybody may read; else the token of the hub's own client is used.
            """
    )

    @OptionGroup var configuration: ConfigurationOptions

    @Argument(
        help:
            "The repository, such as stable-diffusion-v1-5/stable-diffusion-v1-5, and after @ a branch, tag or commit."
    )
    var repository: RepositoryName

    @Option(help: "The folder to download into. Default: Models/ and the repository's name.", completion: .directory)
    var output: String?

    @Option(
        help:
            "Which weights are taken where there are several: full, or fp16, of half the size. Default: what precision needs."
    )
    var variant: WeightVariant?

    @Option(
        help: ArgumentHelp(
            "A file to download instead of what a model needs; * stands for any characters. May be given several times.",
            valueName: "pattern"
        )
    )
    var file: [String] = []

    @Flag(help: "Only list the files and their sizes.")
    var dryRun = false

    func run() async throws {
        // Weights that will be rounded to float16 anyway need not come in more.
        let usual: WeightVariant = try configuration.load().precision == .float16 ? .fp16 : .full
        let directory = output ?? "Models/\(repository.name)"
        guard !directory.isEmpty else { throw UsageError(description: "--output: found \"\", allowed is a folder") }
        let endpoint: HubEndpoint
        do {
            endpoint = try HubEndpoint()
        } catch {
            throw UsageError(description: "\(error)")
        }
        let pull = try await Pull(
            repository,
            into: directory,
            variant: variant ?? usual,
            patterns: file,
            from: endpoint
        )
        if dryRun { return list(pull.selection) }
        try await fetch(pull)
        print(pull.path)
        Diffused.write(advice(pull))
    }

    private func list(_ selection: Selection) {
        let lines = (selection.files.map { (byteText($0.size), $0.path) } + [(byteText(selection.size), "in all")])
        let width = lines.map(\.0.count).max() ?? 0
        for (size, name) in lines { print(String(repeating: " ", count: width - size.count) + size + "  " + name) }
    }

    private func fetch(_ pull: Pull) async throws {
        let isTerminal = isatty(STDERR_FILENO) == 1
        var bar = ProgressBar(total: pull.selection.size) { done, total, perSecond in
            let amount = "\(byteText(done)) of \(byteText(total))"
            guard perSecond > 0 else { return amount }
            let left = Duration.seconds(Double(total - done) / perSecond)
            return
                "\(amount), \(byteText(Int(perSecond))) a second, \(left.formatted(.time(pattern: .minuteSecond))) left"
        }
        defer { bar.finish() }
        try await pull { event in
            switch event {
            case .progress(let bytes, _): bar.show(bytes)
            case .kept(let file) where !isTerminal: Diffused.write("\(file.path): already there\n")
            case .done(let file) where !isTerminal: Diffused.write("\(file.path): \(byteText(file.size))\n")
            case .kept, .begins, .done: break
            }
        }
    }

    /// What to do next.
    private func advice(_ pull: Pull) -> String {
        switch pull.selection.kind {
        case .folder:
            """
            To draw with it: diffused generate --model \(pull.path) --prompt "..."
            For the daemon set model.path in config.yaml to \(pull.path)

            """
        case .part: "To draw with it: --vae \(pull.path), or model.vae in config.yaml\n"
        case .file, .named: "What it is, and whether it is whole: diffused inspect \(pull.path)\n"
        }
    }
}
