// The members of a JSON object: in the order they were written, and found by name in constant time, because a
// vocabulary is one object with tens of thousands of them.

/// Members in order, each name once.
package struct JSONObject: Sendable {
    /// A name with its value.
    package typealias Member = (name: String, value: JSONValue)

    /// The members in order.
    package private(set) var members: [Member] = []
    /// Where each name is in `members`; empty as long as looking through them is faster.
    private var places: [String: Int] = [:]

    /// Objects up to this size are searched from the front.
    private static let searchedCount = 8

    /// Members in order.
    ///
    /// Of a name given twice the last value counts, at the first place.
    package init(_ members: some Sequence<Member> = []) {
        for member in members { self[member.name] = member.value }
    }

    /// Which member has the name of an earlier one.
    struct RepeatedName: Error {
        let index: Int
    }

    /// Members whose names have to differ.
    ///
    /// A table made at once, at its final size, hashes every name once; one that grows hashes them several times.
    init(distinct members: [Member]) throws(RepeatedName) {
        if members.count > Self.searchedCount {
            places.reserveCapacity(members.count)
            for index in members.indices where places.updateValue(index, forKey: members[index].name) != nil {
                throw RepeatedName(index: index)
            }
        } else {
            for index in members.indices where members[..<index].contains(where: { $0.name == members[index].name }) {
                throw RepeatedName(index: index)
            }
        }
        self.members = members
    }

    /// The number of members.
    package var count: Int { members.count }

    /// Whether there are no members.
    package var isEmpty: Bool { members.isEmpty }

    /// The value of a member; nil when there is none.
    ///
    /// A new name goes to the end. Nil removes the member.
    package subscript(name: String) -> JSONValue? {
        get { place(of: name).map { members[$0].value } }
        set {
            switch (place(of: name), newValue) {
            case (let place?, let value?):
                members[place].value = value
            case (nil, let value?):
                members.append((name, value))
                if !places.isEmpty {
                    places[name] = members.count - 1
                } else if members.count > Self.searchedCount {
                    index()
                }
            case (let place?, nil):
                members.remove(at: place)
                index()
            case (nil, nil):
                break
            }
        }
    }

    private func place(of name: String) -> Int? {
        places.isEmpty ? members.firstIndex { $0.name == name } : places[name]
    }

    private mutating func index() {
        places.removeAll()
        guard members.count > Self.searchedCount else { return }
        for (place, member) in members.enumerated() { places[member.name] = place }
    }
}

extension JSONObject: Equatable {
    /// Whether both have the same members in the same order.
    package static func == (left: JSONObject, right: JSONObject) -> Bool {
        left.members.elementsEqual(right.members) { $0 == $1 }
    }
}

extension JSONObject: Sequence {
    package func makeIterator() -> IndexingIterator<[Member]> { members.makeIterator() }
}

extension JSONObject: ExpressibleByDictionaryLiteral {
    package init(dictionaryLiteral elements: (String, JSONValue)...) {
        self.init(elements.map { (name: $0.0, value: $0.1) })
    }
}
