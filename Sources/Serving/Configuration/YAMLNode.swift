// A YAML document as a small tree in which every node knows its place in the file.

/// A scalar, a mapping or a sequence, with the place where it begins.
struct YAMLNode: Equatable, Sendable {
    /// What a node holds.
    enum Content: Equatable, Sendable {
        /// Text; `isPlain` is false when it was quoted or a block scalar, which makes it a string whatever it looks like.
        case scalar(String, isPlain: Bool)
        /// Keys and values in the order of the file; keys are unique.
        case mapping([Entry])
        /// Values in the order of the file.
        case sequence([YAMLNode])
    }

    /// A key of a mapping with its value.
    struct Entry: Equatable, Sendable {
        /// The key's text.
        let key: String
        /// Where the key begins.
        let position: YAMLPosition
        /// The value.
        let value: YAMLNode
    }

    /// What the node holds.
    let content: Content
    /// Where it begins.
    let position: YAMLPosition

    /// Whether the node is an empty value or one of YAML's spellings of null.
    var isNull: Bool {
        guard case .scalar(let text, isPlain: true) = content else { return false }
        return ["", "~", "null", "Null", "NULL"].contains(text)
    }

    /// The node as a message shows it: short, and quoted when it is text.
    var summary: String {
        switch content {
        case .scalar where isNull: "nothing"
        case .scalar(let text, isPlain: true): text.shortened
        case .scalar(let text, isPlain: false): "\"\(text.shortened)\""
        case .mapping: "a mapping"
        case .sequence: "a list"
        }
    }
}

/// A place in a file; line and column count from 1, a column counts characters.
struct YAMLPosition: Equatable, Sendable {
    var line: Int
    var column: Int
}

extension String {
    /// The text on one line, cut after 60 characters, for messages.
    fileprivate var shortened: String {
        let oneLine = String(map { $0.isNewline ? " " : $0 })
        return oneLine.count > 60 ? oneLine.prefix(60) + "…" : oneLine
    }
}
