// The tokenizer against transformers 5.23's CLIPTokenizer (Tests/Fixtures/clip-tokenizer.json), on the vocabulary of
// the demo model, and what it does with damaged files.

import Foundation
import JSON
@testable import StableDiffusion
import TestSupport
import Testing

@Suite struct TokenizerTests {
    private static let source = demoModelPath + "/tokenizer"

    private static var textEncoder: CLIPTextModelConfiguration {
        var configuration = CLIPTextModelConfiguration()
        configuration.vocabSize = 50_000
        return configuration
    }

    private static func tokenizer(_ directory: String) throws -> CLIPTokenizer {
        try CLIPTokenizer(directory: directory, textEncoder: textEncoder)
    }

    /// A folder with the demo model's vocabulary and other configuration files.
    private static func folder(_ files: JSONObject) throws -> TemporaryDirectory {
        let directory = try TemporaryDirectory()
        for name in ["vocab.json", "merges.txt"] { try directory.link(name, to: source + "/" + name) }
        for (name, content) in files { try directory.write(content.serialized, to: name) }
        return directory
    }

    @Test(arguments: ["own", "sd1", "sd2", "sd2-listed", "none", "textual-inversion"])
    func matchesTransformers(variant name: String) throws {
        let variants = try Fixture.json("clip-tokenizer.json")["variants"]?.arrayValue ?? []
        let variant = try #require(variants.first { $0["name"]?.stringValue == name })
        let files = try #require(variant["files"]?.objectValue)
        let directory = try Self.folder(files)
        let tokenizer = try Self.tokenizer(name == "own" ? Self.source : directory.path)
        let padded = try #require(variant["padded"]?.integers)
        #expect(tokenizer.tokenize("a cat").ids == padded)

        let cases = try #require(variant["cases"]?.arrayValue)
        #expect(cases.count > (name == "own" ? 300 : 30))
        for item in cases {
            let text = try #require(item["text"]?.stringValue)
            let expected = try #require(item["ids"]?.integers)
            let result = tokenizer.tokenize(text)
            let escaped = text.unicodeScalars.map { $0.escaped(asASCII: true) }.joined()
            #expect(Array(result.ids.prefix(expected.count)) == expected, "\(escaped)")
            #expect(result.ids.dropFirst(expected.count).allSatisfy { $0 == padded.last }, "\(escaped)")
            #expect(result.ids.count == 77)
            #expect(result.count == expected.count, "\(escaped)")
            #expect(result.truncatedPrompt == item["removed"]?.stringValue, "\(escaped)")
        }
    }

    @Test func readsTheVocabularyFromTokenizerJSONAlone() throws {
        let reference = try Self.tokenizer(Self.source)
        let vocabulary = try String(contentsOfFile: Self.source + "/vocab.json", encoding: .utf8)
        let lines = try String(contentsOfFile: Self.source + "/merges.txt", encoding: .utf8)
            .split(separator: "\n").dropFirst()
        func merge(_ line: Substring) -> String { JSONValue.string(String(line)).serialized }
        let pairs = lines.map { "[" + $0.split(separator: " ").map(merge).joined(separator: ",") + "]" }
        for merges in [lines.map(merge), pairs] {
            let directory = try TemporaryDirectory()
            try directory.write(
                """
                {"added_tokens": [{"id": 0, "content": "!", "normalized": false, "special": true}],
                 "model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": \(vocabulary),
                 "merges": [\(merges.joined(separator: ","))]}}
                """,
                to: "tokenizer.json"
            )
            let tokenizer = try Self.tokenizer(directory.path)
            let text = "An astronaut's horse, naïve 日本語 123"
            #expect(tokenizer.encode(text) == reference.encode(text))
            #expect(tokenizer.encode("!") == [0])
        }
    }

    /// A quadratic algorithm would need ten thousand million steps a word, far more than a minute.
    @Test(.timeLimit(.minutes(1)))
    func longWordsTakeTimeInProportion() throws {
        let tokenizer = try Self.tokenizer(Self.source)
        let letters = (0..<100_000).map { Array("etaoinshrdlu".utf8)[$0 * 7919 % 12] }
        for word in [String(decoding: letters, as: UTF8.self), String(repeating: "!", count: 100_000)] {
            #expect(tokenizer.encode(word).count > 1000)
        }
    }

    @Test func promptsAreCutToTheEncodersPositions() throws {
        var textEncoder = Self.textEncoder
        textEncoder.maxPositionEmbeddings = 8
        let tokenizer = try CLIPTokenizer(directory: Self.source, textEncoder: textEncoder)
        let result = tokenizer.tokenize("one two three four five six seven eight")
        #expect(result.ids.count == 8)
        #expect(result.count == 8)
        #expect(result.truncatedPrompt == "seven eight")
    }

    @Test func refusesAVocabularyLargerThanTheEmbedding() throws {
        var textEncoder = Self.textEncoder
        textEncoder.vocabSize = 49_407
        let error = try #require(throws: ConfigurationFileError.self) {
            try CLIPTokenizer(directory: Self.source, textEncoder: textEncoder)
        }
        #expect(error.description.contains("vocab.json") && error.description.contains("49407"))
    }

    @Test(arguments: [
        (["vocab.json": "{\"a\": 0}"], "merges.txt"),
        (["vocab.json": "{\"a\": 0", "merges.txt": "a b"], "vocab.json"),
        (["vocab.json": "[]", "merges.txt": "a b"], "vocab.json"),
        (["vocab.json": "{}", "merges.txt": "a b"], "tokenizer_config.json"),
        (["vocab.json": "{\"a\": \"b\"}", "merges.txt": "a b"], "vocab.json"),
        (["vocab.json": vocabulary, "merges.txt": "a b"], "vocab.json"),
        (["vocab.json": vocabulary, "merges.txt": ""], "no merges"),
        (["vocab.json": vocabulary, "merges.txt": "#version: 0.2\n"], "no merges"),
        (["vocab.json": vocabulary, "merges.txt": "a b c"], "merges.txt"),
        (["vocab.json": vocabulary, "merges.txt": "a\u{0}"], "merges.txt"),
        (["vocab.json": "{\"<|startoftext|>\": -1, \"<|endoftext|>\": 1}", "merges.txt": "a b"], "vocab.json"),
        (["vocab.json": "{\"<|startoftext|>\": 9999999999, \"<|endoftext|>\": 1}", "merges.txt": "a b"], "vocab.json"),
        (["tokenizer.json": "{\"model\": {\"type\": \"Unigram\", \"vocab\": {}}}"], "tokenizer.json"),
        (["tokenizer_config.json": "{\"pad_token\": \"nowhere\"}"], "tokenizer_config.json"),
        (["tokenizer_config.json": "{\"model_max_length\": 0}"], "tokenizer_config.json"),
        (["added_tokens.json": "{\"x\": 99999999}"], "added token"),
        (["added_tokens.json": "{\"x\": -5}"], "added token"),
    ])
    func namesTheFileThatIsWrong(files: [String: String], name: String) throws {
        let hasVocabulary = files.keys.contains("vocab.json") || files.keys.contains("tokenizer.json")
        let directory = try hasVocabulary ? TemporaryDirectory() : Self.folder([:])
        for (name, content) in files { try directory.write(content, to: name) }
        let error = try #require(throws: ConfigurationFileError.self) { try Self.tokenizer(directory.path) }
        #expect(error.description.contains(name == "merges.txt" && files[name] == nil ? "no tokenizer" : name))
    }

    @Test(arguments: ["vocab.json", "merges.txt"])
    func aLinkToNothingIsNamed(name: String) throws {
        let directory = try TemporaryDirectory()
        for other in ["vocab.json", "merges.txt"] where other != name {
            try directory.link(other, to: Self.source + "/" + other)
        }
        try directory.link(name, to: "nowhere")
        let error = try #require(throws: ConfigurationFileError.self) { try Self.tokenizer(directory.path) }
        #expect(error.description.contains("/\(name): it is a link to a file that is not there"), "\(error)")
    }

    private static let vocabulary = "{\"<|startoftext|>\": 0, \"<|endoftext|>\": 1, \"a\": 2, \"b\": 3}"
}
