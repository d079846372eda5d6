// Reads the files of a tokenizer's folder, or those within the program. Published models have them in several generations: vocabulary and merges as
// two files or within tokenizer.json, special tokens in up to four places. The rules for what overrides what are those
// of transformers 5.23.

internal import CVocabulary
internal import JSON

/// What a tokenizer's folder says.
struct CLIPTokenizerFiles {
    /// The file the vocabulary came from, for messages.
    let vocabularyPath: String
    /// Vocabulary and merges.
    let encoding: BytePairEncoding
    /// Tokens that are looked for in the text as such.
    let addedTokens: [CLIPTokenizer.AddedToken]
    /// Id a prompt starts with.
    let startID: Int
    /// Id a prompt ends with.
    let endID: Int
    /// Id that fills up a prompt.
    let padID: Int
    /// Longest prompt, if the files say.
    let modelMaxLength: Int?
    /// The largest id a prompt can have.
    let maximumID: Int

    /// Larger than any tokenizer's file.
    private static let maximumBytes = 256 << 20

    /// Where the files are: in a folder, or in memory.
    private struct Folder {
        let path: String
        /// Contents by name; nil reads the folder.
        let contents: [String: [UInt8]]?

        func contains(_ name: String) -> Bool {
            contents.map { $0[name] != nil } ?? regularFileExists("\(path)/\(name)")
        }

        func bytes(_ name: String) throws(ConfigurationFileError) -> [UInt8] {
            if let bytes = contents?[name] { return bytes }
            do {
                return try readFile("\(path)/\(name)", maximumBytes: maximumBytes)
            } catch {
                throw ConfigurationFileError(file: "\(path)/\(name)", found: error.reason)
            }
        }

        /// A file that must hold an object, or nil when there is no such file.
        func object(_ name: String) throws(ConfigurationFileError) -> JSONObject? {
            guard contains(name) else { return nil }
            let document: JSONValue
            do {
                document = try JSONValue(parsing: bytes(name))
            } catch let error as JSONError {
                throw ConfigurationFileError(file: "\(path)/\(name)", found: "the file is not valid JSON (\(error))")
            } catch let error as ConfigurationFileError {
                throw error
            } catch {
                throw ConfigurationFileError(file: "\(path)/\(name)", found: "\(error)")
            }
            guard case .object(let members) = document else {
                throw ConfigurationFileError(file: "\(path)/\(name)", found: "the file does not hold a JSON object")
            }
            return members
        }
    }

    /// CLIP's vocabulary from within the program, for single files, which have none.
    ///
    /// - Parameter padToken: What fills up a prompt.
    static func embedded(padToken: String) throws(ConfigurationFileError) -> CLIPTokenizerFiles {
        let configuration = JSONValue.object(["model_max_length": 77, "pad_token": .string(padToken)])
        return try CLIPTokenizerFiles(
            Folder(
                path: "the vocabulary within the program",
                contents: [
                    "vocab.json": [UInt8](
                        UnsafeRawBufferPointer(
                            start: diffused_clip_vocabulary(),
                            count: diffused_clip_vocabulary_size()
                        )
                    ),
                    "merges.txt": [UInt8](
                        UnsafeRawBufferPointer(start: diffused_clip_merges(), count: diffused_clip_merges_size())
                    ),
                    "tokenizer_config.json": Array(configuration.serialized.utf8),
                ]
            )
        )
    }

    /// A token as a file describes it.
    private struct Description {
        let content: String
        let normalized: Bool

        /// A plain string is looked for as typed; an object says.
        init?(_ value: JSONValue?) {
            if let text = value?.stringValue {
                (content, normalized) = (text, false)
            } else if let text = value?["content"]?.stringValue {
                (content, normalized) = (text, value?["normalized"]?.boolValue ?? true)
            } else {
                return nil
            }
        }
    }

    /// Reads a folder.
    init(directory: String) throws(ConfigurationFileError) {
        try self.init(Folder(path: directory, contents: nil))
    }

    private init(_ folder: Folder) throws(ConfigurationFileError) {
        let directory = folder.path
        let config = try folder.object("tokenizer_config.json") ?? [:]
        let specialTokens = try folder.object("special_tokens_map.json") ?? [:]
        let vocabulary: [String: Int]
        let merges: [(String, String)]
        var added: [CLIPTokenizer.AddedToken] = []
        let whole = try folder.object("tokenizer.json")
        if folder.contains("vocab.json"), folder.contains("merges.txt") {
            vocabularyPath = directory + "/vocab.json"
            vocabulary = try Self.vocabulary(folder.object("vocab.json"), path: vocabularyPath)
            merges = try Self.merges(text: folder.bytes("merges.txt"), path: directory + "/merges.txt")
        } else if let whole {
            vocabularyPath = directory + "/tokenizer.json"
            vocabulary = try Self.vocabulary(whole["model"]?["vocab"]?.objectValue, path: vocabularyPath)
            merges = try Self.merges(of: whole, path: vocabularyPath)
        } else {
            let names = directoryNames(directory)
            for name in ["vocab.json", "merges.txt", "tokenizer.json"] where names.contains(name) {
                guard let fault = regularFileFault("\(directory)/\(name)") else { continue }
                throw ConfigurationFileError(file: "\(directory)/\(name)", found: fault)
            }
            throw ConfigurationFileError(
                file: directory,
                found: "no tokenizer",
                allowed: "vocab.json and merges.txt, or tokenizer.json"
            )
        }
        if let whole { added += Self.addedTokens(whole["added_tokens"]?.arrayValue) }
        added += Self.addedTokens(config["added_tokens_decoder"]?.objectValue)
        for (content, id) in try folder.object("added_tokens.json") ?? [:] {
            guard let id = id.integerValue else { continue }
            added.append(CLIPTokenizer.AddedToken(content: content, id: id, normalized: true))
        }

        var ids = vocabulary
        for token in added where ids[token.content] == nil { ids[token.content] = token.id }
        // The roles of today's files are in the configuration; the map of older ones overrides it.
        let mapCounts = config["added_tokens_decoder"]?.objectValue == nil
        var roles: [String: Int] = [:]
        var named: [CLIPTokenizer.AddedToken] = []
        let endOfText = "<|endoftext|>"
        for (role, fallback) in [
            ("bos_token", "<|startoftext|>"), ("eos_token", endOfText), ("unk_token", endOfText),
            ("pad_token", endOfText),
        ] {
            let value = (mapCounts ? specialTokens[role] : nil) ?? config[role] ?? .string(fallback)
            guard let token = Description(value), let id = ids[token.content] else {
                throw ConfigurationFileError(
                    file: directory + "/tokenizer_config.json",
                    key: role,
                    found: value.description,
                    allowed: "a token of the vocabulary"
                )
            }
            roles[role] = id
            // Where roles share a token, the last description of it counts.
            named.removeAll { $0.id == id }
            named.append(CLIPTokenizer.AddedToken(content: token.content, id: id, normalized: token.normalized))
        }
        let listed = Set(added.map(\.content))
        addedTokens = added + named.filter { !listed.contains($0.content) }
        startID = roles["bos_token"] ?? 0
        endID = roles["eos_token"] ?? 0
        padID = roles["pad_token"] ?? 0

        // Files without a limit hold a number beyond any integer.
        let length = config["model_max_length"]?.doubleValue
        if let length, length < 3 {
            throw ConfigurationFileError(
                file: directory + "/tokenizer_config.json",
                key: "model_max_length",
                found: "\(length)",
                allowed: "at least 3"
            )
        }
        modelMaxLength = length.flatMap { $0 <= 1_000_000 ? Int($0) : nil }

        do {
            encoding = try BytePairEncoding(
                vocabulary: vocabulary,
                merges: merges,
                unknown: roles["unk_token"] ?? 0
            )
        } catch {
            throw ConfigurationFileError(file: vocabularyPath, found: error.reason)
        }
        let allIDs = addedTokens.map(\.id) + roles.values
        guard allIDs.allSatisfy({ 0...BytePairEncoding.maximumID ~= $0 }) else {
            throw ConfigurationFileError(file: directory, found: "an added token has an id outside all vocabularies")
        }
        maximumID = max(encoding.tokens.count - 1, allIDs.max() ?? 0)
    }

    private static func vocabulary(
        _ members: JSONObject?,
        path: String
    ) throws(ConfigurationFileError) -> [String: Int] {
        guard let members else {
            throw ConfigurationFileError(file: path, found: "there is no vocabulary in the file")
        }
        var vocabulary: [String: Int] = [:]
        vocabulary.reserveCapacity(members.count)
        for (token, value) in members {
            guard case .number(let literal) = value, let id = Int(literal) else {
                throw ConfigurationFileError(file: path, key: String(token.prefix(80)), found: value.description)
            }
            vocabulary[token] = id
        }
        return vocabulary
    }

    private static func merges(text bytes: [UInt8], path: String) throws(ConfigurationFileError) -> [(String, String)] {
        var merges: [(String, String)] = []
        for (number, line) in bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false).enumerated()
        {
            let line = line.last == UInt8(ascii: "\r") ? line.dropLast() : line
            if line.isEmpty || line.starts(with: "#version".utf8) { continue }
            merges.append(try merge(line, path: path, place: "line \(number + 1)"))
        }
        // Every word would be read letter by letter, and every picture be of something else.
        guard !merges.isEmpty else {
            throw ConfigurationFileError(file: path, found: "there are no merges in the file; download it again")
        }
        return merges
    }

    private static func merges(
        of document: JSONObject,
        path: String
    ) throws(ConfigurationFileError) -> [(String, String)] {
        let model = document["model"]
        guard model?["type"]?.stringValue ?? "BPE" == "BPE",
            model?["end_of_word_suffix"]?.stringValue == BytePairEncoding.endOfWord,
            let list = model?["merges"]?.arrayValue
        else {
            throw ConfigurationFileError(
                file: path,
                found: "the tokenizer's model is not CLIP's",
                allowed: "byte-pair encoding with the end of word suffix \(BytePairEncoding.endOfWord)"
            )
        }
        var merges: [(String, String)] = []
        for (index, value) in list.enumerated() {
            // Pairs are arrays today and were strings with a space.
            if let pair = value.arrayValue, pair.count == 2, let left = pair[0].stringValue,
                let right = pair[1].stringValue
            {
                merges.append((left, right))
            } else {
                merges.append(try merge(Array((value.stringValue ?? "").utf8), path: path, place: "merge \(index)"))
            }
        }
        return merges
    }

    private static func merge(
        _ line: some Collection<UInt8>,
        path: String,
        place: String
    ) throws(ConfigurationFileError) -> (String, String) {
        let parts = line.split(separator: UInt8(ascii: " "), omittingEmptySubsequences: false)
        guard parts.count == 2, !parts[0].isEmpty, !parts[1].isEmpty,
            let left = String(validating: parts[0], as: UTF8.self),
            let right = String(validating: parts[1], as: UTF8.self)
        else {
            throw ConfigurationFileError(file: path, found: "\(place) is not two tokens")
        }
        return (left, right)
    }

    private static func addedTokens(_ list: [JSONValue]?) -> [CLIPTokenizer.AddedToken] {
        (list ?? []).compactMap { value in
            guard let token = Description(value), let id = value["id"]?.integerValue else { return nil }
            return CLIPTokenizer.AddedToken(content: token.content, id: id, normalized: token.normalized)
        }
    }

    private static func addedTokens(_ byID: JSONObject?) -> [CLIPTokenizer.AddedToken] {
        (byID ?? [:]).compactMap { key, value in
            guard let id = Int(key), let token = Description(value) else { return nil }
            return CLIPTokenizer.AddedToken(content: token.content, id: id, normalized: token.normalized)
        }
    }
}
