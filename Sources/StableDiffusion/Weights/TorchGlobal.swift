// The names a pickle of tensors may import, and what each stands for. None is ever imported or called: the machine notes
// what it would make. The list is that of the files in circulation; what is not on it is refused by name.

/// Element types of PyTorch.
struct TorchType: Equatable {
    /// As safetensors spells it.
    let name: String
    /// Bytes of one element.
    let size: Int
}

/// A name that a pickle imports.
struct TorchGlobal {
    /// What a name stands for.
    enum Role: Equatable {
        /// A dictionary.
        case dictionary
        /// `torch.Size`, a tuple.
        case size
        /// `_rebuild_tensor_v2`: storage, offset, shape, strides, and what concerns training.
        case tensor
        /// `_rebuild_tensor_v3`: the same with a type at the end, on a storage of bytes.
        case typedTensor
        /// A tensor that is trained.
        case parameter
        /// A tensor with attributes.
        case subclassedTensor
        /// A class of storages; without a type it counts bytes.
        case storage(TorchType?)
        /// `torch.float16` and the like.
        case elementType(TorchType)
        /// Something that training leaves beside the weights, of no use here.
        case placeholder
    }

    /// The name with its module.
    let name: String
    /// What it stands for.
    let role: Role

    /// Looks a name up.
    init(module: String, name: String) throws(PickleError) {
        let full = "\(module).\(name)"
        guard let role = Self.roles[full] else { throw .forbidden(full) }
        self.name = full
        self.role = role
    }

    private static let types: [(storage: String, names: [String], type: TorchType)] = [
        ("FloatStorage", ["float32", "float"], TorchType(name: "F32", size: 4)),
        ("HalfStorage", ["float16", "half"], TorchType(name: "F16", size: 2)),
        ("BFloat16Storage", ["bfloat16"], TorchType(name: "BF16", size: 2)),
        ("DoubleStorage", ["float64", "double"], TorchType(name: "F64", size: 8)),
        ("LongStorage", ["int64", "long"], TorchType(name: "I64", size: 8)),
        ("IntStorage", ["int32", "int"], TorchType(name: "I32", size: 4)),
        ("ShortStorage", ["int16", "short"], TorchType(name: "I16", size: 2)),
        ("CharStorage", ["int8"], TorchType(name: "I8", size: 1)),
        ("ByteStorage", ["uint8"], TorchType(name: "U8", size: 1)),
        ("BoolStorage", ["bool"], TorchType(name: "BOOL", size: 1)),
        ("ComplexFloatStorage", ["complex64"], TorchType(name: "C64", size: 8)),
        ("ComplexDoubleStorage", ["complex128"], TorchType(name: "C128", size: 16)),
    ]

    private static let roles: [String: Role] = {
        var roles: [String: Role] = [
            "collections.OrderedDict": .dictionary, "collections.defaultdict": .dictionary, "torch.Size": .size,
            "torch._utils._rebuild_tensor_v2": .tensor, "torch._utils._rebuild_tensor_v3": .typedTensor,
            "torch._utils._rebuild_parameter": .parameter,
            "torch._tensor._rebuild_from_type_v2": .subclassedTensor,
            "torch.storage.UntypedStorage": .storage(nil), "torch.UntypedStorage": .storage(nil),
            "torch.float8_e4m3fn": .elementType(TorchType(name: "F8_E4M3", size: 1)),
            "torch.float8_e5m2": .elementType(TorchType(name: "F8_E5M2", size: 1)),
        ]
        for (storage, names, type) in types {
            roles["torch.\(storage)"] = .storage(type)
            for name in names { roles["torch.\(name)"] = .elementType(type) }
        }
        // What PyTorch Lightning and numpy leave in training checkpoints.
        for name in [
            "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
            "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
            "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint", "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "numpy.dtype", "numpy.ndarray", "_codecs.encode", "torch.device", "torch.Tensor",
            "torch.nn.parameter.Parameter", "__builtin__.set", "builtins.set", "__builtin__.list", "builtins.list",
            "__builtin__.dict", "builtins.dict", "__builtin__.int", "builtins.int",
        ] {
            roles[name] = .placeholder
        }
        return roles
    }()
}
