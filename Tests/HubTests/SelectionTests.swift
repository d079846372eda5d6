// What is chosen of repositories as they are on the hub: their file lists, shortened where files are alike.

import JSON
import Testing

@testable import Hub

private func files(_ paths: String) -> [RepositoryFile] {
    paths.split(whereSeparator: \.isWhitespace).enumerated().map { index, path in
        RepositoryFile(
            path: String(path),
            size: 10 + index,
            checksum: .gitBlob(String(repeating: "a", count: 40))
        )
    }
}

private func chosen(_ paths: String, _ variant: WeightVariant = .full, _ patterns: [String] = []) throws -> [String] {
    try Selection(from: files(paths), variant: variant, patterns: patterns).files.map(\.path)
}

private let tokenizer =
    "tokenizer/merges.txt tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json tokenizer/vocab.json"

private let sd15 = """
    .gitattributes README.md feature_extractor/preprocessor_config.json model_index.json safety_checker/config.json
    safety_checker/model.fp16.safetensors safety_checker/model.safetensors safety_checker/pytorch_model.bin
    scheduler/scheduler_config.json text_encoder/config.json text_encoder/model.fp16.safetensors text_encoder/model.safetensors
    text_encoder/pytorch_model.bin text_encoder/pytorch_model.fp16.bin \(tokenizer) unet/config.json
    unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.bin unet/diffusion_pytorch_model.fp16.safetensors
    unet/diffusion_pytorch_model.non_ema.bin unet/diffusion_pytorch_model.non_ema.safetensors
    unet/diffusion_pytorch_model.safetensors v1-5-pruned-emaonly.ckpt v1-5-pruned-emaonly.safetensors v1-5-pruned.ckpt
    v1-5-pruned.safetensors v1-inference.yaml vae/config.json vae/diffusion_pytorch_model.bin
    vae/diffusion_pytorch_model.fp16.safetensors vae/diffusion_pytorch_model.safetensors
    """

private let xl = """
    model_index.json scheduler/scheduler_config.json sd_xl_base_1.0.safetensors sd_xl_offset_example-lora_1.0.safetensors
    text_encoder/config.json text_encoder/flax_model.msgpack text_encoder/model.fp16.safetensors text_encoder/model.onnx
    text_encoder/model.safetensors text_encoder/openvino_model.bin text_encoder/openvino_model.xml
    text_encoder_2/config.json text_encoder_2/model.fp16.safetensors text_encoder_2/model.safetensors
    text_encoder_2/model.onnx_data \(tokenizer)
    \(tokenizer.replacing("tokenizer/", with: "tokenizer_2/")) unet/config.json
    unet/diffusion_flax_model.msgpack unet/diffusion_pytorch_model.fp16.safetensors unet/diffusion_pytorch_model.safetensors
    unet/model.onnx vae/config.json vae/diffusion_pytorch_model.fp16.safetensors vae/diffusion_pytorch_model.safetensors
    vae_1_0/config.json vae_1_0/diffusion_pytorch_model.safetensors vae_decoder/config.json vae_decoder/model.onnx
    """

@Suite struct SelectionTests {
    @Test func stableDiffusion15() throws {
        let names = tokenizer.split(separator: " ").map(String.init)
        let selection = try Selection(from: files(sd15), variant: .full)
        #expect(selection.kind == .folder)
        #expect(
            selection.files.map(\.path)
                == [
                    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
                    "text_encoder/model.safetensors",
                ]
                + names + ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json"]
                + ["vae/diffusion_pytorch_model.safetensors"]
        )
        #expect(selection.size == selection.files.reduce(0) { $0 + $1.size })
        let half = try chosen(sd15, .fp16).filter { $0.hasSuffix(".safetensors") }
        #expect(
            half == [
                "text_encoder/model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.fp16.safetensors",
            ]
        )
    }

    @Test func stableDiffusionXL() throws {
        let names = try chosen(xl, .fp16)
        #expect(names.count == 1 + 1 + 2 * 4 + 4 * 2)
        #expect(names.contains("tokenizer_2/vocab.json") && names.contains("text_encoder_2/model.fp16.safetensors"))
        #expect(
            names.allSatisfy {
                !$0.contains("onnx") && !$0.contains("vae_") && !$0.contains("flax") && !$0.hasPrefix("sd_")
            }
        )
    }

    /// Where a part has not the variant that is wanted it comes in the other, and safetensors come before pickles of either.
    @Test func partsComeAsTheyAre() throws {
        let some = """
            model_index.json scheduler/scheduler_config.json tokenizer/tokenizer.json unet/config.json vae/config.json
            text_encoder/config.json unet/diffusion_pytorch_model.fp16.safetensors unet/diffusion_pytorch_model.bin
            vae/diffusion_pytorch_model.safetensors text_encoder/pytorch_model.bin text_encoder/pytorch_model.fp16.bin
            """
        for variant in WeightVariant.allCases {
            let names = try chosen(some, variant)
            #expect(names.contains("tokenizer/tokenizer.json"))
            #expect(names.contains("unet/diffusion_pytorch_model.fp16.safetensors"))
            #expect(!names.contains("unet/diffusion_pytorch_model.bin"))
            #expect(names.contains("vae/diffusion_pytorch_model.safetensors"))
            let half = variant == .fp16
            #expect(names.contains("text_encoder/pytorch_model.fp16.bin") == half)
            #expect(names.contains("text_encoder/pytorch_model.bin") != half)
        }
    }

    @Test func shardsComeWithTheirIndex() throws {
        let base = """
            model_index.json scheduler/scheduler_config.json \(tokenizer) unet/config.json vae/config.json
            text_encoder/config.json vae/diffusion_pytorch_model.safetensors text_encoder/model.safetensors
            """
        let plain = """
            unet/diffusion_pytorch_model.safetensors.index.json unet/diffusion_pytorch_model-00001-of-00002.safetensors
            unet/diffusion_pytorch_model-00002-of-00002.safetensors
            """
        for half in [
            """
            unet/diffusion_pytorch_model.fp16.safetensors.index.json
            unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors
            """,
            """
            unet/diffusion_pytorch_model.safetensors.index.fp16.json
            unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors unet/diffusion_pytorch_model-00002-of-00002.fp16.safetensors
            """,
        ] {
            func unet(_ text: String) -> [String] {
                text.split(whereSeparator: \.isWhitespace).map(String.init).filter { $0.hasPrefix("unet/d") }.sorted()
            }
            let all = "\(base) \(plain) \(half)"
            #expect(try chosen(all).filter { $0.hasPrefix("unet/d") } == unet(plain))
            #expect(try chosen(all, .fp16).filter { $0.hasPrefix("unet/d") } == unet(half))
        }
    }

    @Test func whatIsNoModelsFolder() throws {
        let vae = "README.md config.json diffusion_pytorch_model.bin diffusion_pytorch_model.safetensors"
        #expect(try Selection(from: files(vae), variant: .fp16).kind == .part)
        #expect(try chosen(vae) == ["config.json", "diffusion_pytorch_model.safetensors"])
        let lora = try Selection(from: files("README.md image.png pytorch_lora_weights.safetensors"), variant: .fp16)
        #expect(lora.kind == .file && lora.files.map(\.path) == ["pytorch_lora_weights.safetensors"])
    }

    @Test func filesAreChosenByName() throws {
        #expect(try chosen(sd15, .full, ["v1-5-pruned.ckpt"]) == ["v1-5-pruned.ckpt"])
        #expect(try chosen(sd15, .full, ["vae/*.bin", "vae/*", "*.yaml"]).count == 5)
        #expect(try Selection(from: files(sd15), variant: .full, patterns: ["vae/*"]).kind == .named)
    }

    @Test(arguments: [
        ("a.safetensors b.ckpt README.md", [], "choose with --file: a.safetensors (10 bytes), b.ckpt (11 bytes)"),
        ("README.md", [], "there is neither a model_index.json nor a .safetensors or .ckpt file at the top; README.md"),
        ("", [], "the repository is empty"),
        ("a.safetensors", ["b*"], "no file is called b*; a.safetensors"),
        ("model_index.json", [], "scheduler/scheduler_config.json is missing"),
        ("model_index.json scheduler/scheduler_config.json", [], "tokenizer/tokenizer.json is missing"),
        ("model_index.json scheduler/scheduler_config.json \(tokenizer)", [], "unet/config.json is missing"),
        (
            "model_index.json scheduler/scheduler_config.json \(tokenizer) unet/config.json unet/flax_model.msgpack",
            [],
            "unet has no weights"
        ),
        (
            "model_index.json scheduler/scheduler_config.json \(tokenizer) unet/config.json unet/model.safetensors.index.json",
            [],
            "unet has no weights"
        ),
    ])
    func whatIsMissingIsNamed(_ paths: String, _ patterns: [String], _ words: String) throws {
        let error = try #require(throws: HubError.self) { try chosen(paths, .full, patterns) }
        #expect(error.description.contains(words), "\(error)")
    }
}

@Suite struct RepositoryTests {
    @Test(arguments: [
        ("a/b", "a/b", "main", "b"), ("gpt2", "gpt2", "main", "gpt2"), ("a-1/b.c_d@v1.5", "a-1/b.c_d", "v1.5", "b.c_d"),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1", "b"),
    ])
    func names(_ text: String, _ path: String, _ revision: String, _ name: String) throws {
        let repository = try #require(RepositoryName(text))
        #expect(repository.path == path && repository.revision == revision && repository.name == name)
    }

    @Test(arguments: [
        "", "/", "a/", "/b", "a/b/c", "a b", "../x", "a/..", "-a/b", "a/b@", "a/b?x=1", "a/b#x", "ä/b", "a/b@x\ny",
    ])
    func whatIsNoName(_ text: String) {
        #expect(RepositoryName(text) == nil)
    }

    private static let commit = String(repeating: "0a", count: 20)
    private static let blob = String(repeating: "1b", count: 20)

    private func repository(_ siblings: String) throws -> Repository {
        let text = "{\"sha\": \"\(Self.commit)\", \"siblings\": \(siblings)}"
        return try Repository(JSONValue(parsing: Array(text.replacing("BLOB", with: Self.blob).utf8)))
    }

    @Test func listingsAreRead() throws {
        let sha = String(repeating: "2c", count: 32)
        let found = try repository(
            """
            [{"rfilename": "a/b.json", "size": 5, "blobId": "BLOB"},
             {"rfilename": "c", "size": 130, "blobId": "BLOB", "lfs": {"sha256": "\(sha)", "size": 7000000000, "pointerSize": 130}}]
            """
        )
        #expect(found.commit == Self.commit)
        #expect(
            found.files == [
                RepositoryFile(path: "a/b.json", size: 5, checksum: .gitBlob(Self.blob)),
                RepositoryFile(path: "c", size: 7_000_000_000, checksum: .sha256(sha)),
            ]
        )
    }

    @Test(arguments: [
        "[{\"rfilename\": \"../a\", \"size\": 5, \"blobId\": \"BLOB\"}]",
        "[{\"rfilename\": \"/etc/passwd\", \"size\": 5, \"blobId\": \"BLOB\"}]",
        "[{\"rfilename\": \"a//b\", \"size\": 5, \"blobId\": \"BLOB\"}]",
        "[{\"rfilename\": \"a/./b\", \"size\": 5, \"blobId\": \"BLOB\"}]",
        "[{\"rfilename\": \"a\\\\..\\\\b\", \"size\": 5, \"blobId\": \"BLOB\"}]",
        "[{\"rfilename\": \"a\\u0000b\", \"size\": 5, \"blobId\": \"BLOB\"}]",
        "[{\"rfilename\": \"\", \"size\": 5, \"blobId\": \"BLOB\"}]",
        "[{\"rfilename\": \"a.incomplete\", \"size\": 5, \"blobId\": \"BLOB\"}]",
        "[{\"rfilename\": \"a\", \"size\": -5, \"blobId\": \"BLOB\"}]",
        "[{\"rfilename\": \"a\", \"size\": 9223372036854775807, \"blobId\": \"BLOB\"}]",
        "[{\"rfilename\": \"a\", \"blobId\": \"BLOB\"}]", "[{\"rfilename\": \"a\", \"size\": 5}]",
        "[{\"rfilename\": \"a\", \"size\": 5, \"blobId\": \"../../x\"}]",
        "[{\"rfilename\": \"a\", \"size\": 5, \"blobId\": \"BLOB\", \"lfs\": {\"sha256\": \"zz\", \"size\": 5}}]",
        "[{\"rfilename\": \"a\", \"size\": 5, \"blobId\": \"BLOB\"}, {\"rfilename\": \"a\", \"size\": 5, \"blobId\": \"BLOB\"}]",
        "{}", "null", "[3]",
    ])
    func whatIsUnusableIsRefused(_ siblings: String) throws {
        let error = try #require(throws: HubError.self) { try repository(siblings) }
        guard case .badListing = error else {
            Issue.record("\(error)")
            return
        }
    }

    @Test func bytesForPeople() {
        for (bytes, text) in [
            (0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1234, "1.23 kB"), (12_345_678, "12.3 MB"),
            (999_900_000, "1 GB"),
            (4_265_146_304, "4.27 GB"), (5_000_000_000_000, "5 TB"),
        ] {
            #expect(byteText(bytes) == text)
        }
    }

    /// `git hash-object` of "hello\n", and `sha256sum`.
    @Test func digests() {
        var blob = FileDigest(.gitBlob(""), size: 6)
        var sha = FileDigest(.sha256(""), size: 6)
        for part in ["hel", "", "lo\n"] {
            Array(part.utf8).withUnsafeBytes { blob.update($0) }
            Array(part.utf8).withUnsafeBytes { sha.update($0) }
        }
        #expect(blob.digits == "ce013625030ba8dba906f756967f9e9ca394464a")
        #expect(sha.digits == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03")
    }
}
