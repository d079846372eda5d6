// A pickle is a program for a stack machine that can import and call anything. This machine cannot: it knows numbers, text,
// tuples, lists, dictionaries and the few names that a file of tensors needs, and for those it only notes what they would
// make. Any other name is refused before anything else is read. Opcodes: CPython 3.13, Lib/pickletools.py, protocols 2 to 5.

/// Why a pickle was not read to its end.
enum PickleError: Error, Equatable {
    /// It wants a name that no file of tensors needs.
    case forbidden(String)
    /// It is damaged, or no program that Python would write.
    case malformed(String)
}

/// What a pickle builds, as far as that concerns a checkpoint.
struct Pickle {
    /// A value on the machine's stack.
    enum Value {
        case none
        case bool(Bool)
        case int(Int)
        case float(Double)
        case string(String)
        /// A tuple, list, dictionary or set, as its index in `containers`: they can hold themselves, and be nested deeply.
        case container(Int)
        /// An imported name.
        case global(TorchGlobal)
        /// Stored elements that tensors are views of, as their index in `storages`.
        case storage(Int)
        /// A tensor, as its index in `tensors`.
        case tensor(Int)
        /// Something that is of no use here: bytes, a date, a class of the program that trained the model.
        case opaque
    }

    /// A tuple, list, dictionary or set.
    struct Container {
        /// What it is.
        enum Kind {
            case tuple, list, dictionary, set
        }

        let kind: Kind
        /// The items; keys and values by turns in a dictionary.
        var items: [Value] = []
    }

    /// Elements in a record of the archive.
    struct Storage {
        /// Name of the record.
        let key: String
        /// Type of the elements; nil when only bytes are known.
        let type: TorchType?
        /// Number of elements, or of bytes where the type is nil.
        let count: Int
    }

    /// A view of a storage.
    struct Tensor {
        let storage: Int
        let type: TorchType
        /// In elements.
        let offset: Int
        let shape: [Int]
        let strides: [Int]
    }

    /// All tuples, lists, dictionaries and sets.
    private(set) var containers: [Container] = []
    /// All storages.
    private(set) var storages: [Storage] = []
    /// All tensors.
    private(set) var tensors: [Tensor] = []
    /// What the pickle is of.
    private(set) var root = Value.none

    /// Values that may be pushed and remembered; a file of two thousand tensors has some ten thousand.
    private static let maximumValues = 2 << 20
    /// More dimensions than any weight has.
    private static let maximumRank = 16

    private let bytes: UnsafeRawBufferPointer
    private var position = 0
    /// The byte after its STOP.
    var end: Int { position }
    private var stack: [Value] = []
    /// Heights of the stack at which marks lie.
    private var marks: [Int] = []
    private var memo: [Int: Value] = [:]
    private var pushed = 0

    /// Runs a pickle up to its STOP.
    init(_ bytes: UnsafeRawBufferPointer) throws(PickleError) {
        self.bytes = bytes
        // The oldest protocols do not say so; what such a pickle wants first can still be told.
        guard bytes.count >= 2,
            bytes[0] == Opcode.global.rawValue || (bytes[0] == Opcode.proto.rawValue && 2...5 ~= bytes[1])
        else { throw .malformed("it is not of protocol 2 to 5") }
        while try step() {}
        stack = []
        memo = [:]
    }

    /// Keys and values of a dictionary; empty for anything else.
    func members(of value: Value) -> [(key: Value, value: Value)] {
        guard case .container(let index) = value, containers[index].kind == .dictionary else { return [] }
        let items = containers[index].items
        return stride(from: 0, to: items.count - 1, by: 2).map { (items[$0], items[$0 + 1]) }
    }

    // MARK: - The machine

    private enum Opcode: UInt8 {
        case mark = 0x28, emptyTuple = 0x29, stop = 0x2E, pop = 0x30, popMark = 0x31, dup = 0x32
        case binFloat = 0x47, binInt = 0x4A, binInt1 = 0x4B, binInt2 = 0x4D, none = 0x4E
        case binPersistentID = 0x51, reduce = 0x52, binString = 0x54, shortBinString = 0x55, binUnicode = 0x58
        case emptyList = 0x5D, append = 0x61, build = 0x62, global = 0x63, appends = 0x65
        case binGet = 0x68, longBinGet = 0x6A, binPut = 0x71, longBinPut = 0x72
        case setItem = 0x73, tuple = 0x74, setItems = 0x75, emptyDictionary = 0x7D
        case binBytes = 0x42, shortBinBytes = 0x43
        case proto = 0x80, newObject = 0x81, tuple1 = 0x85, tuple2 = 0x86, tuple3 = 0x87
        case newTrue = 0x88, newFalse = 0x89, long1 = 0x8A, long4 = 0x8B
        case shortBinUnicode = 0x8C, binUnicode8 = 0x8D, binBytes8 = 0x8E, emptySet = 0x8F, addItems = 0x90
        case frozenSet = 0x91, newObjectWithKeywords = 0x92, stackGlobal = 0x93, memoize = 0x94, frame = 0x95
        case byteArray8 = 0x96
    }

    /// Runs one instruction.
    ///
    /// - Returns: Whether there is another.
    private mutating func step() throws(PickleError) -> Bool {
        let start = position
        let code = try integer(UInt8.self)
        guard let opcode = Opcode(rawValue: code) else {
            let name = Self.refusedOpcodes[code].map { " (\($0))" } ?? ""
            throw .malformed(
                "its instruction \(String(code, radix: 16))\(name) at byte \(start) is none that tensors need"
            )
        }
        switch opcode {
        case .proto: guard 2...5 ~= (try integer(UInt8.self)) else { throw .malformed("it changes its protocol") }
        case .frame: _ = try integer(UInt64.self)
        case .stop:
            root = try pop()
            return false

        case .none: try push(.none)
        case .newTrue: try push(.bool(true))
        case .newFalse: try push(.bool(false))
        case .binInt: try push(.int(Int(integer(Int32.self))))
        case .binInt1: try push(.int(Int(integer(UInt8.self))))
        case .binInt2: try push(.int(Int(integer(UInt16.self))))
        case .long1: try push(long(count: Int(integer(UInt8.self))))
        case .long4: try push(long(count: Int(integer(Int32.self))))
        case .binFloat: try push(.float(Double(bitPattern: integer(UInt64.self).byteSwapped)))
        case .binUnicode: try push(.string(text(count: Int(integer(UInt32.self)))))
        case .shortBinUnicode: try push(.string(text(count: Int(integer(UInt8.self)))))
        case .binUnicode8: try push(.string(text(count: length())))
        // Python 2's texts, which need not be any.
        case .binString: try push(byteString(count: Int(integer(UInt32.self))))
        case .shortBinString: try push(byteString(count: Int(integer(UInt8.self))))
        case .binBytes: try pushBytes(count: Int(integer(UInt32.self)))
        case .shortBinBytes: try pushBytes(count: Int(integer(UInt8.self)))
        case .binBytes8, .byteArray8: try pushBytes(count: length())

        case .mark:
            try count(1)
            marks.append(stack.count)
        case .pop: if marks.last == stack.count { marks.removeLast() } else { _ = try pop() }
        case .popMark: _ = try popToMark()
        case .dup:
            let value = try pop()
            try push(value)
            try push(value)
        case .binPut: try put(Int(integer(UInt8.self)))
        case .longBinPut: try put(Int(integer(UInt32.self)))
        case .memoize: try put(memo.count)
        case .binGet: try get(Int(integer(UInt8.self)))
        case .longBinGet: try get(Int(integer(UInt32.self)))

        case .emptyTuple: try push(container(.tuple, []))
        case .tuple1, .tuple2, .tuple3:
            var items: [Value] = []
            for _ in Opcode.tuple1.rawValue...code { items.insert(try pop(), at: 0) }
            try push(container(.tuple, items))
        case .tuple: try push(container(.tuple, popToMark()))
        case .emptyList: try push(container(.list, []))
        case .emptyDictionary: try push(container(.dictionary, []))
        case .emptySet: try push(container(.set, []))
        case .frozenSet: try push(container(.set, popToMark()))
        case .append:
            let item = try pop()
            try extend(.list, with: [item])
        case .appends: try extend(.list, with: popToMark())
        case .addItems: try extend(.set, with: popToMark())
        case .setItem:
            let value = try pop()
            let key = try pop()
            try extend(.dictionary, with: [key, value])
        case .setItems:
            let items = try popToMark()
            guard items.count.isMultiple(of: 2) else { throw .malformed("a dictionary gets a key without a value") }
            try extend(.dictionary, with: items)

        case .global:
            let module = try line()
            let name = try line()
            try push(.global(TorchGlobal(module: module, name: name)))
        case .stackGlobal:
            guard case .string(let name) = try pop(), case .string(let module) = try pop() else {
                throw .malformed("it imports what is no text")
            }
            try push(.global(TorchGlobal(module: module, name: name)))
        case .reduce:
            let arguments = try pop()
            let function = try pop()
            try push(call(function, arguments))
        case .newObject:
            let arguments = try pop()
            let type = try pop()
            try push(call(type, arguments))
        case .newObjectWithKeywords:
            _ = try pop()
            let arguments = try pop()
            let type = try pop()
            try push(call(type, arguments))
        case .build:
            // The state of an object, such as the `_metadata` of a state_dict. Python might run code of the object; here it is dropped.
            _ = try pop()
            switch try top() {
            case .container, .tensor, .opaque: break
            default: throw .malformed("it sets the state of what has none")
            }
        case .binPersistentID: try push(storage(pop()))
        }
        return true
    }

    /// Instructions of Python's that are refused, by name.
    private static let refusedOpcodes: [UInt8: String] = [
        0x69: "INST", 0x6F: "OBJ", 0x50: "PERSID", 0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x97: "NEXT_BUFFER",
        0x98: "READONLY_BUFFER", 0x49: "INT", 0x4C: "LONG", 0x46: "FLOAT", 0x53: "STRING", 0x56: "UNICODE", 0x67: "GET",
        0x70: "PUT", 0x64: "DICT", 0x6C: "LIST",
    ]

    private mutating func integer<Number: FixedWidthInteger>(_ type: Number.Type) throws(PickleError) -> Number {
        guard let value = bytes.integer(position, type) else { throw .malformed("it ends within an instruction") }
        position += MemoryLayout<Number>.size
        return value
    }

    /// A length of eight bytes.
    private mutating func length() throws(PickleError) -> Int {
        guard let count = Int(exactly: try integer(UInt64.self)) else { throw .malformed("it ends within a text") }
        return count
    }

    private mutating func take(_ count: Int) throws(PickleError) -> UnsafeRawBufferPointer {
        guard count >= 0, count <= bytes.count - position else { throw .malformed("it ends within a text") }
        defer { position += count }
        return UnsafeRawBufferPointer(rebasing: bytes[position..<(position + count)])
    }

    private mutating func text(count: Int) throws(PickleError) -> String {
        guard let text = String(validating: try take(count), as: UTF8.self) else {
            throw .malformed("a text in it is not UTF-8")
        }
        return text
    }

    private mutating func byteString(count: Int) throws(PickleError) -> Value {
        String(validating: try take(count), as: UTF8.self).map { .string($0) } ?? .opaque
    }

    private mutating func pushBytes(count: Int) throws(PickleError) {
        _ = try take(count)
        try push(.opaque)
    }

    /// Text up to the end of the line.
    private mutating func line() throws(PickleError) -> String {
        guard let end = bytes[position...].firstIndex(of: UInt8(ascii: "\n")) else {
            throw .malformed("it ends within a name")
        }
        let text = try text(count: end - position)
        position += 1
        return text
    }

    /// A whole number in two's complement; one beyond 64 bits is none that a checkpoint needs.
    private mutating func long(count: Int) throws(PickleError) -> Value {
        let digits = try take(count)
        guard count <= 8 else { return .opaque }
        var value: UInt64 = (digits.last ?? 0) & 0x80 == 0 ? 0 : .max
        for digit in digits.reversed() { value = value << 8 | UInt64(digit) }
        return .int(Int(Int64(bitPattern: value)))
    }

    private mutating func push(_ value: Value) throws(PickleError) {
        try count(1)
        stack.append(value)
    }

    /// Memory is bounded by counting what is made, and what is copied into containers by the stack it comes from.
    private mutating func count(_ values: Int) throws(PickleError) {
        pushed += values
        guard pushed <= Self.maximumValues else { throw .malformed("it builds more than \(Self.maximumValues) values") }
    }

    private mutating func pop() throws(PickleError) -> Value {
        let value = try top()
        stack.removeLast()
        return value
    }

    private func top() throws(PickleError) -> Value {
        guard let value = stack.last, stack.count > marks.last ?? 0 else {
            throw .malformed("it uses what it has not made")
        }
        return value
    }

    private mutating func popToMark() throws(PickleError) -> [Value] {
        guard let mark = marks.popLast() else { throw .malformed("it has an end without a beginning") }
        let items = Array(stack[mark...])
        stack.removeSubrange(mark...)
        return items
    }

    private mutating func put(_ index: Int) throws(PickleError) {
        try count(1)
        memo[index] = try top()
    }

    private mutating func get(_ index: Int) throws(PickleError) {
        guard let value = memo[index] else { throw .malformed("it uses what it has not made") }
        try push(value)
    }

    private mutating func container(_ kind: Container.Kind, _ items: [Value]) -> Value {
        containers.append(Container(kind: kind, items: items))
        return .container(containers.count - 1)
    }

    /// Adds items to the container on top of the stack.
    private mutating func extend(_ kind: Container.Kind, with items: [Value]) throws(PickleError) {
        guard case .container(let index) = try top(), containers[index].kind == kind else {
            throw .malformed("it adds to what is no \(kind)")
        }
        containers[index].items += items
    }

    private func items(_ value: Value) -> [Value]? {
        guard case .container(let index) = value, containers[index].kind != .dictionary else { return nil }
        return containers[index].items
    }

    // MARK: - What names make

    /// What a call would make, which is noted and not called.
    private mutating func call(_ function: Value, _ arguments: Value) throws(PickleError) -> Value {
        guard case .global(let global) = function else { throw .malformed("it calls what it has not imported") }
        guard let arguments = items(arguments) else { throw .malformed("it calls \(global.name) without arguments") }
        switch global.role {
        case .dictionary:
            // Older Pythons give the members as a list of pairs; a default's factory is no list.
            try count(arguments.first.flatMap(items)?.count ?? 0)
            let pairs = arguments.first.flatMap(items)?.compactMap(items).filter { $0.count == 2 } ?? []
            try count(2 * pairs.count)
            return container(.dictionary, pairs.flatMap(\.self))
        case .size: return arguments.first ?? container(.tuple, [])
        case .tensor:
            guard arguments.count >= 4 else { throw .malformed("a tensor lacks its shape or strides") }
            return try tensor(arguments, type: nil)
        case .typedTensor:
            guard arguments.count >= 7, case .global(let last) = arguments[6], case .elementType(let type) = last.role
            else {
                throw .malformed("a tensor lacks its type")
            }
            return try tensor(arguments, type: type)
        case .parameter:
            guard let first = arguments.first, case .tensor = first else {
                throw .malformed("a parameter is no tensor")
            }
            return first
        case .subclassedTensor:
            guard arguments.count >= 3, case .global(let inner) = arguments[0], inner.role != .subclassedTensor else {
                throw .malformed("a tensor lacks its function")
            }
            return try call(arguments[0], arguments[2])
        case .placeholder: return .opaque
        case .storage, .elementType: throw .malformed("it calls \(global.name), which is no function")
        }
    }

    /// A tensor from `(storage, offset, shape, strides, ...)`.
    private mutating func tensor(_ arguments: [Value], type: TorchType?) throws(PickleError) -> Value {
        guard case .storage(let index) = arguments[0], case .int(let offset) = arguments[1],
            let shape = integers(arguments[2]), let strides = integers(arguments[3]),
            shape.count == strides.count, shape.count <= Self.maximumRank
        else { throw .malformed("a tensor has no storage, offset, shape and strides") }
        let storage = storages[index]
        guard let type = type ?? storage.type else { throw .malformed("a tensor has no type") }
        // In elements of the tensor: a storage without a type counts bytes.
        let available = storage.type == nil ? storage.count / type.size : storage.count
        var (count, last) = (1, offset)
        var isTooLarge = false
        for (size, stride) in zip(shape, strides) {
            let (product, overflow) = count.multipliedReportingOverflow(by: size)
            let (distance, overflow2) = max(size - 1, 0).multipliedReportingOverflow(by: stride)
            let (sum, overflow3) = last.addingReportingOverflow(distance)
            (count, last) = (product, sum)
            isTooLarge = isTooLarge || overflow || overflow2 || overflow3
        }
        guard offset >= 0, !isTooLarge, count == 0 ? offset <= available : last < available else {
            throw .malformed("a tensor \(shape) is larger than its storage of \(available) elements")
        }
        tensors.append(Tensor(storage: index, type: type, offset: offset, shape: shape, strides: strides))
        return .tensor(tensors.count - 1)
    }

    /// A tuple of sizes.
    private func integers(_ value: Value) -> [Int]? {
        guard let items = items(value), items.count <= Self.maximumRank else { return nil }
        var integers: [Int] = []
        for item in items {
            guard case .int(let integer) = item, integer >= 0 else { return nil }
            integers.append(integer)
        }
        return integers
    }

    /// The storage of a persistent identifier `("storage", class, key, location, count)`.
    private mutating func storage(_ identifier: Value) throws(PickleError) -> Value {
        guard let parts = items(identifier), parts.count >= 5, case .string("storage") = parts[0],
            case .global(let global) = parts[1], case .storage(let type) = global.role,
            case .string(let key) = parts[2], case .int(let count) = parts[4], count >= 0
        else { throw .malformed("a storage is not described as PyTorch does it") }
        storages.append(Storage(key: key, type: type, count: count))
        return .storage(storages.count - 1)
    }
}
