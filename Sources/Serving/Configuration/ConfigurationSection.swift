// One mapping of the configuration file, read key by key with type, range and position. Every method leaves its
// target alone when the key is absent, so that defaults survive.

internal import StableDiffusion

/// A mapping whose keys are all known.
struct ConfigurationSection {
    private let path: String?
    private let file: String
    private let position: YAMLPosition
    private let values: [String: YAMLNode]

    /// Takes a mapping apart.
    ///
    /// - Parameters:
    ///   - path: the section's name; nil for the top level.
    ///   - keys: the keys allowed here.
    init(path: String?, node: YAMLNode, file: String, keys: [String]) throws(ConfigurationError) {
        guard case .mapping(let entries) = node.content else {
            throw ConfigurationError(
                file: file,
                at: node.position,
                key: path,
                reason: "found \(node.summary), allowed are the keys \(keys.joined(separator: ", "))"
            )
        }
        self.path = path
        self.file = file
        position = node.position
        for entry in entries where !keys.contains(entry.key) {
            let suggestion = nearestName(to: entry.key, among: keys).map { "; did you mean \"\($0)\"?" } ?? ""
            throw ConfigurationError(
                file: file,
                at: entry.position,
                key: path.map { "\($0).\(entry.key)" } ?? entry.key,
                reason: "unknown key\(suggestion) (allowed here: \(keys.joined(separator: ", ")))"
            )
        }
        values = Dictionary(uniqueKeysWithValues: entries.map { ($0.key, $0.value) })
    }

    /// A section below this one; nil when it is absent or empty.
    func section(_ key: String, keys: [String]) throws(ConfigurationError) -> ConfigurationSection? {
        guard let node = values[key], !node.isNull else { return nil }
        return try ConfigurationSection(path: name(key), node: node, file: file, keys: keys)
    }

    /// The sections of a list below this one; none when it is absent or empty.
    func sections(_ key: String, keys: [String]) throws(ConfigurationError) -> [ConfigurationSection] {
        guard let node = values[key], !node.isNull else { return [] }
        guard case .sequence(let items) = node.content else {
            throw failure(key, node, allowed: "a list of mappings with the keys \(keys.joined(separator: ", "))")
        }
        var sections: [ConfigurationSection] = []
        for (index, item) in items.enumerated() {
            sections.append(
                try ConfigurationSection(path: "\(name(key))[\(index)]", node: item, file: file, keys: keys)
            )
        }
        return sections
    }

    /// Refuses a section without a key.
    func require(_ key: String) throws(ConfigurationError) {
        guard values[key] == nil else { return }
        throw ConfigurationError(
            file: file,
            at: position,
            key: path,
            reason: "there is no key \(key), which is needed here"
        )
    }

    /// The node of a key that is there, or else the section as a whole, is not what is allowed.
    func failure(_ key: String, allowed: String) -> ConfigurationError {
        values[key].map { failure(key, $0, allowed: allowed) }
            ?? ConfigurationError(file: file, at: position, key: path, reason: "allowed is \(allowed)")
    }

    /// Text that is not empty.
    func text(_ key: String, into target: inout String) throws(ConfigurationError) {
        if let text = try text(key, allowed: "text that is not empty") { target = text }
    }

    /// Text that is not empty, or the word that leaves the default.
    ///
    /// - Parameter limit: In characters; nil for any length.
    func text(
        _ key: String,
        orWord word: String,
        atMost limit: Int? = nil,
        into target: inout String?
    ) throws(ConfigurationError) {
        guard let text = try text(key, allowed: "\(word) or text that is not empty"), text != word else { return }
        if let limit, text.unicodeScalars.count > limit {
            throw failure(key, allowed: "\(word) or text of at most \(limit) characters")
        }
        target = text
    }

    /// A path, made relative to `directory` unless it is absolute.
    func path(_ key: String, from directory: String, into target: inout String) throws(ConfigurationError) {
        if let path = try path(key, from: directory, allowed: "a path") { target = path }
    }

    /// A path, made relative to `directory` unless it is absolute, or the word that leaves the default.
    func path(
        _ key: String,
        from directory: String,
        orWord word: String,
        into target: inout String?
    ) throws(ConfigurationError) {
        if let node = values[key], case .scalar(word, isPlain: true) = node.content { return }
        if let path = try path(key, from: directory, allowed: "\(word) or a path") { target = path }
    }

    /// A whole number within a range.
    func integer(_ key: String, in range: ClosedRange<Int>, into target: inout Int) throws(ConfigurationError) {
        let value = try integer(key, allowed: "a whole number from \(range.lowerBound) to \(range.upperBound)") {
            range.contains($0)
        }
        if let value { target = value }
    }

    /// A whole number within a range, or the word that leaves the default.
    func integer(
        _ key: String,
        in range: ClosedRange<Int>,
        orWord word: String,
        into target: inout Int?
    ) throws(ConfigurationError) {
        let allowed = "\(word) or a whole number from \(range.lowerBound) to \(range.upperBound)"
        if let value = try integer(key, orWord: word, allowed: allowed, where: { range.contains($0) }) {
            target = value
        }
    }

    /// A picture side: a multiple of 8.
    func size(_ key: String, atMost limit: Int, into target: inout Int) throws(ConfigurationError) {
        let value = try integer(key, allowed: "a multiple of 8 from 8 to \(limit)") { isPictureSide($0, atMost: limit) }
        if let value { target = value }
    }

    /// A picture side, or the word that leaves the default.
    func size(
        _ key: String,
        atMost limit: Int,
        orWord word: String,
        into target: inout Int?
    ) throws(ConfigurationError) {
        let allowed = "\(word) or a multiple of 8 from 8 to \(limit)"
        if let value = try integer(key, orWord: word, allowed: allowed, where: { isPictureSide($0, atMost: limit) }) {
            target = value
        }
    }

    /// A finite number up to a limit.
    func number(_ key: String, atMost limit: Double, into target: inout Double) throws(ConfigurationError) {
        guard let node = values[key] else { return }
        guard case .scalar(let text, isPlain: true) = node.content, let value = Double(text),
            value.isFinite, value <= limit,
            text.allSatisfy({ "+-.0123456789eE".contains($0) })
        else {
            throw failure(key, node, allowed: "a number of at most \(Int(limit))")
        }
        target = value
    }

    /// One of a fixed set of words.
    func choice<Choice>(_ key: String, into target: inout Choice) throws(ConfigurationError)
    where Choice: CaseIterable & RawRepresentable<String> {
        if let choice = try choice(key, among: Choice.allCases.map(\.rawValue), Choice.init(rawValue:)) {
            target = choice
        }
    }

    /// One of a fixed set of words, or the word that leaves the default.
    func choice<Choice>(_ key: String, orWord word: String, into target: inout Choice?) throws(ConfigurationError)
    where Choice: CaseIterable & RawRepresentable<String> {
        if let node = values[key], case .scalar(word, _) = node.content { return }
        if let choice = try choice(key, among: [word] + Choice.allCases.map(\.rawValue), Choice.init(rawValue:)) {
            target = choice
        }
    }

    /// A sampler by any of its names; a schedule in the name is set as well.
    func sampler(
        _ key: String,
        into sampler: inout Sampler,
        schedule: inout SigmaSchedule?
    ) throws(ConfigurationError) {
        guard let name = try choice(key, among: Sampler.allCases.map(\.rawValue), { SamplerName($0) }) else { return }
        sampler = name.sampler
        schedule = name.schedule ?? schedule
    }

    /// Refuses a schedule that the sampler beside it does not have.
    func check(_ schedule: SigmaSchedule, of sampler: Sampler) throws(ConfigurationError) {
        guard !sampler.schedules.contains(schedule) else { return }
        for key in ["schedule", "sampler"] {
            guard let node = values[key] else { continue }
            let schedules = sampler.schedules.map(\.rawValue).joined(separator: ", ")
            throw failure(key, node, allowed: "a schedule that \(sampler.rawValue) has (\(schedules))")
        }
    }

    private func choice<Choice>(
        _ key: String,
        among words: [String],
        _ read: (String) -> Choice?
    ) throws(ConfigurationError) -> Choice? {
        guard let node = values[key] else { return nil }
        guard case .scalar(let text, _) = node.content, let choice = read(text) else {
            var allowed = words.joined(separator: ", ")
            if case .scalar(let text, _) = node.content, let nearest = nearestName(to: text, among: words) {
                allowed += "; did you mean \(nearest)?"
            }
            throw failure(key, node, allowed: allowed)
        }
        return choice
    }

    private func text(_ key: String, allowed: String) throws(ConfigurationError) -> String? {
        guard let node = values[key] else { return nil }
        guard case .scalar(let text, _) = node.content, !node.isNull, !text.isEmpty else {
            throw failure(key, node, allowed: allowed)
        }
        // An escape such as "\0" brings in what the file itself must not hold; the system would cut a path there.
        guard !text.unicodeScalars.contains(where: { $0.properties.generalCategory == .control }) else {
            throw ConfigurationError(
                file: file,
                at: node.position,
                key: name(key),
                reason: "found a control character, allowed is \(allowed) without any"
            )
        }
        return text
    }

    private func path(_ key: String, from directory: String, allowed: String) throws(ConfigurationError) -> String? {
        guard let node = values[key], let text = try text(key, allowed: allowed) else { return nil }
        guard !text.hasPrefix("~") else {
            throw failure(key, node, allowed: "\(allowed) (\"~\" is not expanded here, write the directory out)")
        }
        return resolve(text, from: directory)
    }

    private func integer(
        _ key: String,
        orWord word: String? = nil,
        allowed: String,
        where isAllowed: (Int) -> Bool
    ) throws(ConfigurationError) -> Int? {
        guard let node = values[key] else { return nil }
        guard case .scalar(let text, isPlain: true) = node.content else { throw failure(key, node, allowed: allowed) }
        if let word, text == word { return nil }
        // `Int` alone would take "+8" and "-0".
        guard text.allSatisfy(\.isASCIIDigit), let value = Int(text), isAllowed(value) else {
            throw failure(key, node, allowed: allowed)
        }
        return value
    }

    private func name(_ key: String) -> String {
        path.map { "\($0).\(key)" } ?? key
    }

    private func failure(_ key: String, _ node: YAMLNode, allowed: String) -> ConfigurationError {
        ConfigurationError(
            file: file,
            at: node.position,
            key: name(key),
            reason: "found \(node.summary), allowed is \(allowed)"
        )
    }
}

extension Character {
    fileprivate var isASCIIDigit: Bool { ("0"..."9").contains(self) }
}

/// Whether a number of pixels can be the side of a picture: a multiple of 8, because a latent covers 8 by 8 pixels.
func isPictureSide(_ pixels: Int, atMost limit: Int) -> Bool {
    pixels >= 8 && pixels <= limit && pixels.isMultiple(of: 8)
}

/// A path as seen from the current directory, when it was written as seen from `directory`.
func resolve(_ path: String, from directory: String) -> String {
    path.hasPrefix("/") || directory == "." ? path : "\(directory)/\(path)"
}

/// The name a misspelt word most likely meant: at most two letters away, and fewer than it has letters.
func nearestName(to word: String, among names: [String]) -> String? {
    // Beyond any length that can be near, the answer does not matter; the bound keeps long input cheap.
    guard word.lowercased().count <= 64 else { return nil }
    let candidates = names.map { (name: $0, distance: editDistance(word.lowercased(), $0)) }
    guard let best = candidates.min(by: { $0.distance < $1.distance }),
        best.distance <= 2, best.distance < best.name.count
    else { return nil }
    return best.name
}
