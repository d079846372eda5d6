// What a configuration file may say, and what a mistake in it is answered with, word for word.

import Logging
import StableDiffusion
import Testing

@testable import Serving

/// Parses a file as if it stood in `/etc/diffused`.
private func parse(_ text: String, environment: [String: String] = [:]) throws(ConfigurationError) -> Configuration {
    try Configuration.parse(
        Array(text.utf8),
        file: "config.yaml",
        directory: "/etc/diffused",
        environment: environment
    )
}

private let topLevelKeys =
    "server, model, models, image, precision, device, sampling, queue, storage, kernels, cache, limits, log"

private let modelKeys = "name, path, vae, prediction_type, loras, embeddings, precision"

@Suite struct ConfigurationTests {
    @Test(arguments: ["", "\n", "# nothing\n", "---\n", "{}", "server:\nimage:\n", "\u{FEFF}"])
    func emptyFileIsDefaults(text: String) throws {
        #expect(try parse(text) == Configuration())
    }

    @Test func everyKey() throws {
        let configuration = try parse(
            """
            server: {host: 0.0.0.0, port: 9000}
            model:
              path: models/sd15
              vae: /models/vae.safetensors
              prediction_type: v_prediction
              loras: loras
              embeddings: /srv/embeddings
            models:
              - {name: xl, path: xl.safetensors, precision: float32, loras: xl-loras, vae: xl-vae}
              - name: ink
                path: /models/ink.ckpt
            image: {width: 768, height: auto}
            precision: bfloat16
            device: {platform: "NVIDIA", index: 1, gemm: clblast, model_memory: 4096}
            sampling: {sampler: DPM++ 2M Karras, spacing: trailing, steps: 20, scale: -1.5e1,
              rng: cuda, prompt_syntax: a1111, clip_skip: 2}
            queue: {capacity: 3, on_disconnect: cancel}
            storage: {directory: /srv/pictures}
            kernels: {directory: Kernels}
            cache: {directory: cache}
            limits: {width: 1024, height: 512, steps: 100, count: 7, prompt_characters: 500, body_bytes: 4096}
            log: {level: debug}
            """
        )
        var expected = Configuration()
        expected.server = .init(host: "0.0.0.0", port: 9000)
        expected.model.path = "/etc/diffused/models/sd15"
        expected.model.vae = "/models/vae.safetensors"
        expected.model.prediction = .velocity
        expected.model.loras = "/etc/diffused/loras"
        expected.model.embeddings = "/srv/embeddings"
        expected.models = [Configuration.Model(), Configuration.Model()]
        expected.models[0].givenName = "xl"
        expected.models[0].path = "/etc/diffused/xl.safetensors"
        expected.models[0].precision = .float32
        expected.models[0].loras = "/etc/diffused/xl-loras"
        expected.models[0].vae = "/etc/diffused/xl-vae"
        expected.models[1].givenName = "ink"
        expected.models[1].path = "/models/ink.ckpt"
        expected.modelMemory = 4096
        expected.image = .init(width: 768, height: nil)
        expected.precision = .bfloat16
        expected.device = DeviceOptions(platform: "NVIDIA", index: 1, gemm: .clblast)
        expected.sampling.sampler = .dpmpp2M
        expected.sampling.schedule = .karras
        expected.sampling.spacing = .trailing
        expected.sampling.noise = .cuda
        expected.sampling.promptSyntax = .a1111
        expected.sampling.clipSkip = 2
        expected.sampling.steps = 20
        expected.sampling.scale = -15
        expected.queue.capacity = 3
        expected.queue.onDisconnect = .cancel
        expected.storage.directory = "/srv/pictures"
        expected.kernels.directory = "/etc/diffused/Kernels"
        expected.cache.directory = "/etc/diffused/cache"
        expected.limits = .init(width: 1024, height: 512, steps: 100, count: 7, promptCharacters: 500, bodyBytes: 4096)
        expected.log.level = .debug
        #expect(configuration == expected)
        let again = try Configuration.parse(Array(expected.yaml.utf8), file: "", directory: ".", environment: [:])
        #expect(again == expected)
    }

    @Test func modelsAreCalledAfterTheirFiles() throws {
        for (path, name) in [
            ("Models/demo", "demo"), ("a/b.safetensors", "b"), ("/x/y.ckpt/", "y"), ("v1.5", "v1.5"),
            (".ckpt", ".ckpt"),
        ] {
            var model = Configuration.Model()
            model.path = path
            #expect(model.name == name)
        }
    }

    @Test(arguments: [
        ("sever: {}", "1:1: sever: unknown key; did you mean \"server\"? (allowed here: \(topLevelKeys))"),
        (
            "server:\n  prot: 80",
            "2:3: server.prot: unknown key; did you mean \"port\"? (allowed here: host, port)"
        ),
        ("models: 3", "1:9: models: found 3, allowed is a list of mappings with the keys \(modelKeys)"),
        ("models: [a]", "1:10: models[0]: found a, allowed are the keys \(modelKeys)"),
        ("models:\n  - {path: a}", "2:5: models[0]: there is no key name, which is needed here"),
        ("models:\n  - {name: a}", "2:5: models[0]: there is no key path, which is needed here"),
        (
            "models:\n  - {name: a, path: b}\n  - {name: a, path: c}",
            "3:12: models[1].name: found a, allowed is a name that no other model has"
        ),
        (
            "model: {path: x/a.ckpt}\nmodels: [{name: a, path: c}]",
            "2:17: models[0].name: found a, allowed is a name that no other model has"
        ),
        (
            "models: [{name: a, path: b, precision: int8}]",
            "1:40: models[0].precision: found int8, allowed is auto, float32, float16, bfloat16"
        ),
        (
            "model: {name: \(String(repeating: "n", count: 201))}",
            "1:15: model.name: found \(String(repeating: "n", count: 60))…, allowed is auto or text of at most 200 characters"
        ),
        (
            "device: {model_memory: 1}",
            "1:24: device.model_memory: found 1, allowed is auto or a whole number from 64 to 16777216"
        ),
        ("server: {color: red}", "1:10: server.color: unknown key (allowed here: host, port)"),
        ("server:\n  port: http", "2:9: server.port: found http, allowed is a whole number from 0 to 65535"),
        (
            "server:\n  port: \"8000\"",
            "2:9: server.port: found \"8000\", allowed is a whole number from 0 to 65535"
        ),
        (
            "server: {port: 65536}",
            "1:16: server.port: found 65536, allowed is a whole number from 0 to 65535"
        ),
        ("server: {port: 80.0}", "1:16: server.port: found 80.0, allowed is a whole number from 0 to 65535"),
        (
            "server: {port: 99999999999999999999}",
            "1:16: server.port: found 99999999999999999999, allowed is a whole number from 0 to 65535"
        ),
        ("server: {port: }", "1:16: server.port: found nothing, allowed is a whole number from 0 to 65535"),
        ("server: {host: [a]}", "1:16: server.host: found a list, allowed is text that is not empty"),
        ("server: 8000", "1:9: server: found 8000, allowed are the keys host, port"),
        ("- a", "1:1: found a list, allowed are the keys \(topLevelKeys)"),
        (
            "model: {path: \"a\\0b\"}",
            "1:15: model.path: found a control character, allowed is a path without any"
        ),
        ("model: {path: ''}", "1:15: model.path: found \"\", allowed is a path"),
        (
            "model: {path: ~/sd}",
            "1:15: model.path: found ~/sd, allowed is a path (\"~\" is not expanded here, write the directory out)"
        ),
        (
            "image: {width: 100}",
            "1:16: image.width: found 100, allowed is auto or a multiple of 8 from 8 to 2048"
        ),
        (
            "limits: {width: 512}\nimage: {width: 520}",
            "2:16: image.width: found 520, allowed is auto or a multiple of 8 from 8 to 512"
        ),
        (
            "image: {height: -8}",
            "1:17: image.height: found -8, allowed is auto or a multiple of 8 from 8 to 2048"
        ),
        (
            "precision: flaot16",
            "1:12: precision: found flaot16, allowed is float32, float16, bfloat16; did you mean float16?"
        ),
        (
            "device: {index: first}",
            "1:17: device.index: found first, allowed is auto or a whole number from 0 to 255"
        ),
        (
            "device: {gemm: cublas}",
            "1:16: device.gemm: found cublas, allowed is auto, clblast, builtin; did you mean clblast?"
        ),
        (
            "sampling: {sampler: ddmi}",
            "1:21: sampling.sampler: found ddmi, allowed is ddim, pndm, euler, euler_a, heun, dpm2, dpm2_a, lms, dpmpp_2m, "
                + "dpmpp_2m_sde, dpmpp_sde, dpmpp_2s_a, unipc, deis, lcm, tcd; did you mean ddim?"
        ),
        (
            "sampling: {schedule: karas}",
            "1:22: sampling.schedule: found karas, allowed is auto, uniform, karras, exponential, beta; did you mean karras?"
        ),
        (
            "sampling: {schedule: karras}",
            "1:22: sampling.schedule: found karras, allowed is a schedule that ddim has (uniform)"
        ),
        (
            "sampling: {sampler: pndm_beta}",
            "1:21: sampling.sampler: found pndm_beta, allowed is a schedule that pndm has (uniform)"
        ),
        ("sampling: {rng: gpu}", "1:17: sampling.rng: found gpu, allowed is torch, cuda, tensorflow, numpy"),
        ("sampling: {scale: .nan}", "1:19: sampling.scale: found .nan, allowed is a number of at most 10000"),
        ("sampling: {scale: nan}", "1:19: sampling.scale: found nan, allowed is a number of at most 10000"),
        ("sampling: {scale: 1e300}", "1:19: sampling.scale: found 1e300, allowed is a number of at most 10000"),
        ("sampling: {scale: 1e999}", "1:19: sampling.scale: found 1e999, allowed is a number of at most 10000"),
        ("sampling: {steps: 0}", "1:19: sampling.steps: found 0, allowed is a whole number from 1 to 1000"),
        ("limits: {steps: 1001}", "1:17: limits.steps: found 1001, allowed is a whole number from 1 to 1000"),
        ("queue: {capacity: 0}", "1:19: queue.capacity: found 0, allowed is a whole number from 1 to 10000"),
        (
            "log: {level: loud}",
            "1:14: log.level: found loud, allowed is trace, debug, info, notice, warning, error, critical"
        ),
        (
            "queue: {capacity: 1}\nqueue: {capacity: 2}",
            "2:1: queue: the key is given twice; the first is in line 1"
        ),
        (
            "queue: &q {capacity: 1}",
            "1:8: anchors (&name) are not used in this file; write the value where it belongs"
        ),
        ("queue: *q", "1:8: aliases (*name) are not used in this file; write the value itself"),
        ("queue: {capacity: !!int 1}", "1:19: tags (!name) are not used in this file; write the plain value"),
        (
            "queue: {capacity: 1}\n---\nqueue: {}",
            "2:1: a second document begins here; the file must hold one"
        ),
        ("server:\n\tport: 1", "2:1: not valid YAML: found a tab; indent with spaces"),
        ("server: {port: 1", "2:1: not valid YAML: did not find expected ',' or '}'"),
        ("? [a]\n: b", "1:3: a key must be a word, not a mapping or a list"),
        ("a\0b", "1:2: found the control character 0x0; the file must be plain UTF-8 text"),
        (
            String(repeating: "[", count: 100_000),
            "1:17: nested more than 16 levels deep; two are enough here"
        ),
        (
            String(repeating: "#", count: (1 << 20) + 1),
            " the file has more than 1048576 bytes; that is no configuration of diffused"
        ),
    ])
    func mistakes(text: String, message: String) {
        let error = #expect(throws: ConfigurationError.self) { try parse(text) }
        #expect(error?.description == "config.yaml:\(message)")
    }

    @Test func invalidUTF8HasAPlace() {
        let error = #expect(throws: ConfigurationError.self) {
            try Configuration.parse(
                Array("# é\nmodel: ".utf8) + [0xFF],
                file: "config.yaml",
                directory: ".",
                environment: [:]
            )
        }
        #expect(error?.description == "config.yaml:2:8: found bytes that are not UTF-8; save the file as UTF-8 text")
    }

    @Test func missingFileIsNamed() {
        let error = #expect(throws: ConfigurationError.self) {
            try Configuration.load(file: "/nonexistent/config.yaml", environment: [:])
        }
        #expect(error?.description == "/nonexistent/config.yaml: cannot be read: No such file or directory")
    }

    @Test func directoryIsRefused() {
        let error = #expect(throws: ConfigurationError.self) {
            try Configuration.load(file: "/tmp", environment: [:])
        }
        #expect(error?.description.hasPrefix("/tmp: cannot be read: ") == true)
    }

    /// Random bytes and random edits of a good file end in an error or a configuration, never in a crash.
    @Test func randomFiles() {
        let good = Array(Configuration().yaml.utf8)
        var generator = SystemRandomNumberGenerator()
        for _ in 0..<2000 {
            var bytes = good
            for _ in 0..<Int.random(in: 1...8, using: &generator) {
                let alphabet = Array("[]{}:,-&*!|>'\"#%@` \t\n\0\u{7F}é0a".utf8)
                let index = Int.random(in: bytes.indices, using: &generator)
                bytes[index] = alphabet.randomElement(using: &generator) ?? 0
            }
            _ = try? Configuration.parse(bytes, file: "f", directory: ".", environment: [:])
        }
    }
}

@Suite struct ConfigurationEnvironmentTests {
    @Test func environmentWins() throws {
        let configuration = try parse(
            "image: {width: 512, height: 512}\nprecision: bfloat16",
            environment: ["WIDTH": "640", "HEIGHT": "384", "MIXED_PRECISION": "no"]
        )
        #expect(configuration.image == .init(width: 640, height: 384))
        #expect(configuration.precision == .float32)
        #expect(try parse("precision: float32", environment: ["MIXED_PRECISION": "yes"]).precision == .float16)
    }

    @Test func emptyVariablesCountAsUnset() throws {
        let empty = ["WIDTH": "", "HEIGHT": "", "MIXED_PRECISION": ""]
        #expect(try parse("image: {width: 512}", environment: empty).image.width == 512)
    }

    @Test(arguments: [
        (
            "WIDTH",
            "abc", "environment variable WIDTH: found \"abc\", allowed is a multiple of 8 from 8 to 2048"
        ),
        (
            "HEIGHT",
            "100", "environment variable HEIGHT: found \"100\", allowed is a multiple of 8 from 8 to 2048"
        ),
        (
            "WIDTH",
            "4096", "environment variable WIDTH: found \"4096\", allowed is a multiple of 8 from 8 to 2048"
        ),
        (
            "MIXED_PRECISION", "true",
            "environment variable MIXED_PRECISION: found \"true\", allowed is yes (float16) or no (float32)"
        ),
    ])
    func badVariables(name: String, value: String, message: String) {
        let error = #expect(throws: ConfigurationError.self) { try parse("", environment: [name: value]) }
        #expect(error?.description == message)
    }

    @Test func systemdDirectories() throws {
        let systemd = [
            "STATE_DIRECTORY": "/var/lib/diffused", "CACHE_DIRECTORY": "/var/cache/diffused", "HOME": "/root",
        ]
        let configuration = try parse("cache: {directory: auto}", environment: systemd)
        #expect(configuration.storage.directory == "/var/lib/diffused")
        #expect(configuration.cache.directory == "/var/cache/diffused")
        #expect(try parse("storage: {directory: /srv}", environment: systemd).storage.directory == "/srv")
    }

    @Test(arguments: [
        (["XDG_CACHE_HOME": "/x", "HOME": "/h"], "/x/diffused"),
        (["HOME": "/h"], "/h/.cache/diffused"),
        (["XDG_CACHE_HOME": "relative", "HOME": "/h"], "/h/.cache/diffused"),
        ([:], nil),
    ])
    func cacheDirectory(environment: [String: String], expected: String?) throws {
        #expect(try parse("", environment: environment).cache.directory == expected)
    }

    @Test(
        arguments: [
            ("server", ["server", "model"], "server"), ("sevrer", ["server", "model"], "server"),
            ("xyz", ["server"], nil), ("ab", ["cd"], nil), ("PORT", ["port"], "port"),
        ] as [(String, [String], String?)]
    )
    func suggestions(word: String, names: [String], expected: String?) {
        #expect(nearestName(to: word, among: names) == expected)
    }
}
