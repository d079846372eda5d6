// The program itself, as a shell sees it: exit codes, and what goes to which stream.

import Foundation
import StableDiffusion
import TestSupport
import Testing

@testable import Serving

/// Runs the program that was built beside these tests, in a directory of its own.
private func diffused(
    _ command: String,
    _ arguments: [String] = [],
    in directory: TemporaryDirectory,
    environment: [String: String] = [:],
    into destination: FileHandle? = nil
) throws -> (status: Int32, output: String, errors: String) {
    let tests = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
    let process = Process()
    process.executableURL = URL(fileURLWithPath: tests).deletingLastPathComponent().appendingPathComponent("diffused")
    process.arguments = [command] + arguments
    process.currentDirectoryURL = URL(fileURLWithPath: directory.path)
    process.environment = environment
    let output = Pipe()
    let errors = Pipe()
    if let destination { process.standardOutput = destination } else { process.standardOutput = output }
    process.standardError = errors
    try process.run()
    // What the commands of these tests write fits a pipe.
    process.waitUntilExit()
    return (
        process.terminationStatus,
        destination == nil
            ? String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self) : "",
        String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    )
}

@Suite struct CommandLineTests {
    @Test func goodConfiguration() throws {
        let directory = try TemporaryDirectory()
        try "server: {port: 1234}".write(toFile: directory.path + "/c.yaml", atomically: true, encoding: .utf8)
        let result = try diffused("check-config", ["c.yaml"], in: directory, environment: ["WIDTH": "64"])
        #expect(result.status == 0)
        #expect(result.errors.isEmpty)
        #expect(result.output.hasPrefix("# c.yaml: valid\nserver:\n"))
        // What it prints is a configuration.
        let shown = try Configuration.parse(Array(result.output.utf8), file: "", directory: ".", environment: [:])
        #expect(shown.server.port == 1234)
        #expect(shown.image.width == 64)
    }

    @Test(arguments: ["check-config", "serve --config", "generate --prompt a --config", "benchmark --config"])
    func badConfigurationIs2(command: String) throws {
        let directory = try TemporaryDirectory()
        try "queue: {capacity: 0}".write(toFile: directory.path + "/c.yaml", atomically: true, encoding: .utf8)
        let arguments = command.split(separator: " ").map(String.init)
        let result = try diffused(arguments[0], Array(arguments.dropFirst()) + ["c.yaml"], in: directory)
        #expect(result.status == 2)
        #expect(result.output.isEmpty)
        let reason = "queue.capacity: found 0, allowed is a whole number from 1 to 10000"
        #expect(result.errors == "diffused: c.yaml:1:19: \(reason)\n")
    }

    @Test(arguments: [
        "nonsense", "serve --nonsense", "generate", "generate --prompt a --steps 0", "generate --prompt a --width 100",
        "generate --prompt a --seed 18446744073709551616", "generate --prompt a --seed 1.5",
        "generate --prompt a --scale nan", "generate --prompt a --clip-skip 0", "generate --prompt a --strength 0.5",
        "generate --prompt a --mask a.png", "generate --prompt a --outpaint left:8",
        "generate --prompt a --hires 1", "generate --prompt a --hires 2 --hires-strength 0",
        "generate --prompt a --hires-steps 5",
        "generate --prompt a --hires 2 --image a.png", "generate --prompt a --hires 2 --hires-steps 0",
        "generate --prompt a --image a.png --outpaint left", "generate --prompt a --sampler foo",
        "generate --prompt a --sampler ddim_karras", "generate --prompt a --schedule steep",
        "generate --prompt a --sampler lcm --spacing trailing", "generate --prompt a --sampler euler --eta 0.5",
        "generate --prompt a --sampler ddim --eta -1", "generate --prompt a --rng dice",
        "generate --prompt a --lora ink:strong", "generate --prompt a --lora ink:101", "generate --prompt a --lora :1",
        "generate --prompt a --precision float8", "benchmark --operators --width 100",
    ])
    func wrongUsageIs2(command: String) throws {
        let arguments = command.split(separator: " ").map(String.init)
        let result = try diffused(arguments[0], Array(arguments.dropFirst()), in: try TemporaryDirectory())
        #expect(result.status == 2)
        #expect(result.output.isEmpty)
        #expect(!result.errors.isEmpty)
    }

    @Test(arguments: ["--help", "--version", "help"])
    func helpIs0(argument: String) throws {
        let result = try diffused(argument, in: try TemporaryDirectory())
        #expect(result.status == 0)
        #expect(!result.output.isEmpty)
        #expect(result.errors.isEmpty)
    }

    @Test func inspectSaysWhatAFileIsWithoutADevice() throws {
        let directory = try TemporaryDirectory()
        let noDevices = ["OCL_ICD_VENDORS": directory.path]
        let model = try diffused("inspect", [demoModelPath], in: directory, environment: noDevices)
        #expect(model.status == 0)
        #expect(model.output.hasPrefix("\(demoModelPath): a model\n") && model.output.hasSuffix("  complete\n"))
        #expect(model.errors.isEmpty)
        let json = try diffused("inspect", ["--json", demoModelPath], in: directory, environment: noDevices)
        #expect(json.output.hasPrefix("{\n") && json.output.contains("\"kind\" : \"model\""))
        try directory.write(
            torchFile([SafetensorsTensor(name: "double_blocks.0.img_attn.norm.key_norm.scale", shape: [1], values: [1])]
            ),
            to: "flux.ckpt"
        )
        let other = try diffused("inspect", ["flux.ckpt"], in: directory, environment: noDevices)
        #expect(other.status == 1 && other.output.contains("a Flux model") && other.errors.isEmpty)
        try directory.write([0x80, 2] + Array("cos\nsystem\n".utf8), to: "evil.ckpt")
        let evil = try diffused("inspect", ["evil.ckpt"], in: directory, environment: noDevices)
        #expect(evil.status == 1 && evil.output.isEmpty)
        #expect(evil.errors.hasPrefix("diffused: evil.ckpt: the pickle wants `os.system`"))
    }

    @Test func missingModelIs1() throws {
        let directory = try TemporaryDirectory()
        let result = try diffused("generate", ["--prompt", "a", "--model", "nowhere"], in: directory)
        #expect(result.status == 1)
        #expect(result.output.isEmpty)
        #expect(result.errors.contains("nowhere"))
    }

    @Test func aConfiguredModelIsMeantByItsName() throws {
        let directory = try TemporaryDirectory()
        try directory.write("models: [{name: ink, path: nowhere/ink.safetensors}]", to: "config.yaml")
        for (model, path) in [("ink", "nowhere/ink.safetensors"), ("./ink", "./ink")] {
            let result = try diffused("generate", ["--prompt", "a", "--model", model], in: directory)
            #expect(result.status == 1 && result.errors.contains("\(path): there is no such"), "\(result.errors)")
        }
    }

    @Test func missingVAEIs1() throws {
        let directory = try TemporaryDirectory()
        let arguments = ["--prompt", "a", "--model", demoModelPath, "--vae", "nowhere.safetensors"]
        let result = try diffused("generate", arguments, in: directory)
        #expect(result.status == 1)
        #expect(result.errors.contains("nowhere.safetensors: "), "\(result.errors)")
    }

    @Test func lostOutputIs1() throws {
        let directory = try TemporaryDirectory()
        let result = try diffused("check-config", in: directory, into: FileHandle(forWritingAtPath: "/dev/full"))
        #expect(result.status == 1)
        #expect(result.errors == "diffused: cannot write to standard output: No space left on device\n")
    }

    @Test func aModelThatDoesNotLoadIsTheOnlyComplaint() throws {
        let directory = try TemporaryDirectory()
        try directory.write("server: {port: 0}\nmodel: {path: nowhere}\nlog: {level: warning}", to: "c.yaml")
        let result = try diffused("serve", ["--config", "c.yaml"], in: directory)
        #expect(result.status == 1)
        #expect(result.errors.hasPrefix("diffused: cannot load nowhere: "), "\(result.errors)")
        #expect(result.errors.split(separator: "\n").count == 1, "\(result.errors)")
    }

    @Test func unwritableStorageIs1() throws {
        let directory = try TemporaryDirectory()
        try "storage: {directory: /proc/x}".write(toFile: directory.path + "/c.yaml", atomically: true, encoding: .utf8)
        let result = try diffused("serve", ["--config", "c.yaml"], in: directory)
        #expect(result.status == 1)
        #expect(result.errors == "diffused: cannot make the directory /proc/x: No such file or directory\n")
    }
}

/// What can only be seen when a picture is drawn.
@Suite(.enabled(if: (try? describeDevices()) != nil, "there is no OpenCL device; install pocl-opencl-icd"))
struct DrawingCommandLineTests {
    @Test(arguments: [
        ("nowhere/a.png", "No such file"), (".", "Is a directory"), ("a/", "Is a directory"), ("", "Is a"),
    ])
    func unwritableOutputIs1(output: String, reason: String) throws {
        let directory = try TemporaryDirectory()
        let result = try draw(into: output, in: directory)
        #expect(result.status == 1)
        #expect(result.errors.contains("--output: cannot write") && result.errors.contains(reason), "\(result.errors)")
        #expect(!result.errors.contains("NSCocoaErrorDomain"))
    }

    @Test func outputIntoWhatIsNoFileLeavesItInPlace() throws {
        let directory = try TemporaryDirectory()
        try directory.write("old", to: "target.png")
        try directory.link("link.png", to: "target.png")
        #expect(try draw(into: "link.png", in: directory).status == 0)
        #expect(try FileManager.default.destinationOfSymbolicLink(atPath: directory.path + "/link.png") == "target.png")
        let target = try #require(FileManager.default.contents(atPath: directory.path + "/target.png"))
        #expect(target.starts(with: [0x89, 0x50, 0x4E, 0x47]))
        // A pipe stands for everything that is no file; held open at both ends, it takes the whole picture.
        let pipe = directory.path + "/pipe"
        try #require(mkfifo(pipe, 0o600) == 0)
        let descriptor = open(pipe, O_RDWR)
        defer { close(descriptor) }
        #expect(try draw(into: "pipe", in: directory).status == 0)
        let type = try FileManager.default.attributesOfItem(atPath: pipe)[.type] as? FileAttributeType
        try #require(type != .typeRegular)
        var start = [UInt8](repeating: 0, count: 4)
        #expect(read(descriptor, &start, start.count) == 4)
        #expect(start == [0x89, 0x50, 0x4E, 0x47])
    }

    /// Each of several is the single picture with its seed.
    @Test func severalPicturesAreNumbered() throws {
        let directory = try TemporaryDirectory()
        func draw(_ arguments: String...) throws -> (status: Int32, output: String, errors: String) {
            try diffused(
                "generate",
                ["--prompt", "a", "--steps", "1", "--width", "32", "--height", "32", "--model", demoModelPath]
                    + arguments,
                in: directory,
                environment: ProcessInfo.processInfo.environment
            )
        }
        let several = try draw("--seed", "4", "--count", "2", "--output", "a.b/p.png")
        #expect(several.status == 1 && several.errors.contains("a.b/p-1.png"), "\(several.errors)")
        #expect(try draw("--seed", "4", "--count", "2", "--output", "p.png").output == "p-1.png\np-2.png\n")
        #expect(try draw("--seed", "5", "--output", "single").output == "single\n")
        let pictures = try ["p-2.png", "single"].map {
            try Data(contentsOf: URL(fileURLWithPath: "\(directory.path)/\($0)"))
        }
        #expect(pictures[0] == pictures[1])
        for count in ["0", "17"] {
            let refused = try draw("--count", count)
            #expect(refused.status == 2 && refused.errors.contains("--count: found \(count)"))
        }
    }

    private func draw(into output: String, in directory: TemporaryDirectory) throws
        -> (status: Int32, output: String, errors: String)
    {
        try diffused(
            "generate",
            ["--prompt", "a", "--steps", "1", "--model", demoModelPath, "--output", output],
            in: directory,
            environment: ProcessInfo.processInfo.environment
        )
    }

    @Test func anUnknownHostIsExplained() throws {
        let directory = try TemporaryDirectory()
        // A model that takes a moment to load, so that the host is what fails first.
        try directory.write("server: {host: a b}\nmodel: {path: \(demoModelPath)}", to: "c.yaml")
        let result = try diffused("serve", ["--config", "c.yaml"], in: directory)
        #expect(result.status == 1)
        #expect(result.errors.contains("cannot listen on a b:8000: "), "\(result.errors)")
        #expect(result.errors.contains("server.host must be"), "\(result.errors)")
    }

    @Test func missingKernelsAreNamedWithTheReason() throws {
        let directory = try TemporaryDirectory()
        try directory.write("kernels: {directory: nowhere}", to: "config.yaml")
        let result = try draw(into: "a.png", in: directory)
        #expect(result.status == 1)
        #expect(
            result.errors.contains(
                "nowhere/common.clh cannot be read: No such file or directory. Check kernels.directory"
            ),
            "\(result.errors)"
        )
    }
}
