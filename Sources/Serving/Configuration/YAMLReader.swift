// Reads YAML text into a tree with positions, through libyaml's event parser. The only file that imports CYAML.
// Anchors, aliases, tags and several documents have no use in a configuration and are refused, which also keeps a
// small file from growing into a large tree.

internal import CYAML

/// Reads one YAML document.
enum YAMLReader {
    /// Mappings and lists may be nested this deep; the configuration needs two levels.
    static let maximumDepth = 16
    /// Files larger than this, in bytes, are refused: no configuration comes near.
    static let maximumBytes = 1 << 20

    /// Parses a document.
    ///
    /// - Parameters:
    ///   - bytes: the file's content, UTF-8.
    ///   - file: the file's name for messages.
    /// - Returns: the root node, or nil when the file holds no document.
    /// - Throws: `ConfigurationError` with the place of the mistake.
    static func read(_ bytes: [UInt8], file: String) throws(ConfigurationError) -> YAMLNode? {
        guard bytes.count <= maximumBytes else {
            throw ConfigurationError(
                origin: .wholeFile(file),
                reason: "the file has more than \(maximumBytes) bytes; that is no configuration of diffused"
            )
        }
        try checkCharacters(bytes, file: file)

        let parser = UnsafeMutablePointer<yaml_parser_t>.allocate(capacity: 1)
        defer { parser.deallocate() }
        guard yaml_parser_initialize(parser) == 1 else {
            throw ConfigurationError(origin: .wholeFile(file), reason: "no memory to read the file")
        }
        defer { yaml_parser_delete(parser) }

        // libyaml keeps the pointer, so the whole parse happens inside the closure.
        let result: Result<YAMLNode?, ConfigurationError> = bytes.withUnsafeBufferPointer { buffer in
            yaml_parser_set_encoding(parser, YAML_UTF8_ENCODING)
            yaml_parser_set_input_string(parser, buffer.baseAddress, buffer.count)
            return Result { () throws(ConfigurationError) in
                var composer = TreeComposer(parser: parser, bytes: bytes, file: file)
                return try composer.compose()
            }
        }
        return try result.get()
    }

    /// Refuses what is not text before libyaml sees it, because libyaml reports no line for it.
    private static func checkCharacters(_ bytes: [UInt8], file: String) throws(ConfigurationError) {
        if let index = bytes.firstIndex(where: { ($0 < 0x20 && $0 != 0x09 && $0 != 0x0A && $0 != 0x0D) || $0 == 0x7F })
        {
            let code = "0x" + String(bytes[index], radix: 16, uppercase: true)
            throw ConfigurationError(
                origin: place(of: index, in: bytes, file: file),
                reason: "found the control character \(code); the file must be plain UTF-8 text"
            )
        }
        var validator = Unicode.UTF8.ForwardParser()
        var iterator = bytes.makeIterator()
        var valid = 0
        while true {
            switch validator.parseScalar(from: &iterator) {
            case .valid(let scalar): valid += scalar.count
            case .emptyInput: return
            case .error:
                throw ConfigurationError(
                    origin: place(of: valid, in: bytes, file: file),
                    reason: "found bytes that are not UTF-8; save the file as UTF-8 text"
                )
            }
        }
    }

    /// The line and column of a byte.
    fileprivate static func place(of index: Int, in bytes: [UInt8], file: String) -> ConfigurationError.Origin {
        var line = 1
        var column = 1
        for byte in bytes[..<index] {
            if byte == 0x0A {
                line += 1
                column = 1
            } else if byte & 0xC0 != 0x80 {
                column += 1
            }
        }
        return .file(file, line: line, column: column)
    }
}

/// Builds the tree from libyaml's events, without recursion.
private struct TreeComposer {
    let parser: UnsafeMutablePointer<yaml_parser_t>
    let bytes: [UInt8]
    let file: String

    /// A mapping or list whose end has not come yet.
    private struct Open {
        enum Kind { case mapping, sequence }
        let kind: Kind
        let position: YAMLPosition
        var entries: [YAMLNode.Entry] = []
        var items: [YAMLNode] = []
        /// The key whose value comes next.
        var pendingKey: (text: String, position: YAMLPosition)?
    }

    private var open: [Open] = []
    private var root: YAMLNode?
    private var documents = 0

    init(parser: UnsafeMutablePointer<yaml_parser_t>, bytes: [UInt8], file: String) {
        self.parser = parser
        self.bytes = bytes
        self.file = file
    }

    /// Reads events until the end of the stream.
    mutating func compose() throws(ConfigurationError) -> YAMLNode? {
        while true {
            var event = yaml_event_t()
            guard yaml_parser_parse(parser, &event) == 1 else { throw syntaxError() }
            defer { yaml_event_delete(&event) }
            if event.type == YAML_STREAM_END_EVENT { return root }
            try take(event)
        }
    }

    private mutating func take(_ event: yaml_event_t) throws(ConfigurationError) {
        let position = YAMLPosition(event.start_mark)
        switch event.type {
        case YAML_DOCUMENT_START_EVENT:
            documents += 1
            guard documents == 1 else {
                throw failure(position, "a second document begins here; the file must hold one")
            }
        case YAML_ALIAS_EVENT:
            throw failure(position, "aliases (*name) are not used in this file; write the value itself")
        case YAML_SCALAR_EVENT:
            let scalar = event.data.scalar
            try refuse(anchor: scalar.anchor, tag: scalar.tag, at: position)
            let text = String(decoding: UnsafeBufferPointer(start: scalar.value, count: scalar.length), as: UTF8.self)
            let isPlain = scalar.style == YAML_PLAIN_SCALAR_STYLE
            try add(YAMLNode(content: .scalar(text, isPlain: isPlain), position: position))
        case YAML_MAPPING_START_EVENT:
            try refuse(anchor: event.data.mapping_start.anchor, tag: event.data.mapping_start.tag, at: position)
            try begin(.mapping, at: position)
        case YAML_SEQUENCE_START_EVENT:
            try refuse(anchor: event.data.sequence_start.anchor, tag: event.data.sequence_start.tag, at: position)
            try begin(.sequence, at: position)
        case YAML_MAPPING_END_EVENT, YAML_SEQUENCE_END_EVENT:
            guard let finished = open.popLast() else { return }
            let content: YAMLNode.Content =
                switch finished.kind {
                case .mapping: .mapping(finished.entries)
                case .sequence: .sequence(finished.items)
                }
            try add(YAMLNode(content: content, position: finished.position))
        default:
            break
        }
    }

    private mutating func begin(_ kind: Open.Kind, at position: YAMLPosition) throws(ConfigurationError) {
        if let parent = open.last, parent.kind == .mapping, parent.pendingKey == nil {
            throw failure(position, "a key must be a word, not a mapping or a list")
        }
        guard open.count < YAMLReader.maximumDepth else {
            throw failure(position, "nested more than \(YAMLReader.maximumDepth) levels deep; two are enough here")
        }
        open.append(Open(kind: kind, position: position))
    }

    /// Puts a finished node where it belongs: the root, a list item, a key, or the value of the pending key.
    private mutating func add(_ node: YAMLNode) throws(ConfigurationError) {
        guard var parent = open.popLast() else {
            root = node
            return
        }
        switch (parent.kind, parent.pendingKey) {
        case (.sequence, _):
            parent.items.append(node)
        case (.mapping, let key?):
            parent.entries.append(YAMLNode.Entry(key: key.text, position: key.position, value: node))
            parent.pendingKey = nil
        case (.mapping, nil):
            guard case .scalar(let text, _) = node.content else {
                throw failure(node.position, "a key must be a word, not a mapping or a list")
            }
            if let first = parent.entries.first(where: { $0.key == text }) {
                throw ConfigurationError(
                    file: file,
                    at: node.position,
                    key: text,
                    reason: "the key is given twice; the first is in line \(first.position.line)"
                )
            }
            parent.pendingKey = (text, node.position)
        }
        open.append(parent)
    }

    private func refuse(
        anchor: UnsafeMutablePointer<yaml_char_t>?,
        tag: UnsafeMutablePointer<yaml_char_t>?,
        at position: YAMLPosition
    ) throws(ConfigurationError) {
        if anchor != nil {
            throw failure(position, "anchors (&name) are not used in this file; write the value where it belongs")
        }
        if tag != nil {
            throw failure(position, "tags (!name) are not used in this file; write the plain value")
        }
    }

    private func failure(_ position: YAMLPosition, _ reason: String) -> ConfigurationError {
        ConfigurationError(file: file, at: position, reason: reason)
    }

    /// The error libyaml stopped with, in one sentence.
    private func syntaxError() -> ConfigurationError {
        let problem = parser.pointee.problem.map { String(cString: $0) } ?? "the text ends unexpectedly"
        if parser.pointee.error == YAML_READER_ERROR {
            // The reader, below the scanner, knows the byte but no line.
            let origin = YAMLReader.place(of: min(parser.pointee.problem_offset, bytes.count), in: bytes, file: file)
            return ConfigurationError(origin: origin, reason: "not valid YAML: \(problem)")
        }
        let position = YAMLPosition(parser.pointee.problem_mark)
        if byte(at: parser.pointee.problem_mark.index) == 0x09 {
            return failure(position, "not valid YAML: found a tab; indent with spaces")
        }
        return failure(position, "not valid YAML: \(problem)")
    }

    /// The byte at a character index, which is how libyaml's marks count.
    private func byte(at characterIndex: Int) -> UInt8? {
        var index = 0
        for byte in bytes where byte & 0xC0 != 0x80 {
            if index == characterIndex { return byte }
            index += 1
        }
        return nil
    }
}

extension YAMLPosition {
    /// libyaml counts lines and columns from 0.
    fileprivate init(_ mark: yaml_mark_t) {
        self.init(line: Int(mark.line) + 1, column: Int(mark.column) + 1)
    }
}
