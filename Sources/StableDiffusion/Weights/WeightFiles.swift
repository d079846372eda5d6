// Finds the weight files of a component's directory: the plain name, the half-precision variant, or an index with
// shards, in the order diffusers looks for them; safetensors first, then pickles (`.bin`).

internal import JSON

/// The files that together hold the weights of a component.
///
/// A pickle is opened only where there is no safetensors file.
///
/// - Throws: `WeightsError.noWeights` with what to do when there are none that can be read.
func weightFiles(in directory: String) throws(WeightsError) -> [String] {
    let containers = [
        (suffix: "safetensors", bases: ["diffusion_pytorch_model", "model"]),
        (suffix: "bin", bases: ["diffusion_pytorch_model", "pytorch_model"]),
    ]
    // The variant's place within the name of an index differs between diffusers and transformers releases.
    for (suffix, bases) in containers {
        for variant in ["", ".fp16"] {
            for base in bases {
                let single = "\(directory)/\(base)\(variant).\(suffix)"
                if regularFileExists(single) { return [single] }
                var indexes = ["\(base)\(variant).\(suffix).index.json"]
                if !variant.isEmpty { indexes.append("\(base).\(suffix).index\(variant).json") }
                for index in indexes where regularFileExists("\(directory)/\(index)") {
                    return try shards(directory: directory, index: index, suffix: suffix)
                }
            }
        }
    }
    throw .noWeights(directory: directory, reason: reasonForNoWeights(in: directory))
}

/// Files an index may name; more is no checkpoint.
private let maximumShards = 1000

private func shards(directory: String, index: String, suffix: String) throws(WeightsError) -> [String] {
    let path = "\(directory)/\(index)"
    let document: JSONValue
    do {
        document = try JSONValue(parsing: readFile(path, maximumBytes: 64 << 20))
    } catch let error as JSONError {
        throw .unreadable(file: path, reason: "the index is not valid JSON (\(error))")
    } catch let error as FileReadingError {
        throw .unreadable(file: path, reason: error.reason)
    } catch {
        throw .unreadable(file: path, reason: "\(error)")
    }
    guard let map = document["weight_map"]?.objectValue, !map.isEmpty else {
        throw .unreadable(file: path, reason: "the index has no \"weight_map\"")
    }
    var names: Set<String> = []
    for (tensor, value) in map {
        guard let name = value.stringValue else {
            throw .unreadable(file: path, reason: "the index names no file for \"\(tensor.prefix(200))\"")
        }
        // An index is downloaded: it may name files beside it, never a path that leads elsewhere.
        guard name.hasSuffix(".\(suffix)"), !name.contains("/"), !name.contains("\\"), !name.utf8.contains(0) else {
            throw .unreadable(
                file: path,
                reason: "the index names \"\(name.prefix(200))\", which is no .\(suffix) file beside it"
            )
        }
        names.insert(name)
    }
    guard names.count <= maximumShards else {
        throw .unreadable(file: path, reason: "the index names \(names.count) files")
    }
    let missing = names.filter { !regularFileExists("\(directory)/\($0)") }.sorted()
    guard missing.isEmpty else {
        throw .noWeights(
            directory: directory,
            reason: "\(index) names \(missing.joined(separator: ", ")), not there; download it"
        )
    }
    return names.sorted().map { "\(directory)/\($0)" }
}

private func reasonForNoWeights(in directory: String) -> String {
    guard directoryExists(directory) else { return "there is no such directory" }
    let names = directoryNames(directory)
    // Hub downloads are links into a cache, which is easily left behind or emptied.
    let usual = [
        "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin",
    ]
    for name in usual where names.contains(name) {
        return regularFileFault("\(directory)/\(name)").map { "\(name): \($0)" }
            ?? "\(name) has just appeared; try again"
    }
    let others = names.filter { $0.hasSuffix(".safetensors") || $0.hasSuffix(".bin") || $0.hasSuffix(".ckpt") }
    if !others.isEmpty {
        return "found \(others.joined(separator: ", ")), but none with a name that diffusers reads, such as "
            + "diffusion_pytorch_model.safetensors or model.safetensors"
    }
    return
        "there is no diffusion_pytorch_model.safetensors, model.safetensors, index of shards or .bin file of these names"
}
