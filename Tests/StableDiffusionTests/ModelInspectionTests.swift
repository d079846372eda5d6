// What `diffused inspect` says of models whole and incomplete, of parts, LoRAs and embeddings.

import Foundation
@testable import StableDiffusion
import TestSupport
import Testing

@Suite struct ModelInspectionTests {
    private func inspect(_ bytes: [UInt8], name: String = "x.safetensors") throws -> ModelInspection {
        let directory = try TemporaryDirectory()
        return try withExtendedLifetime(directory) { try ModelInspection(path: directory.write(bytes, to: name)) }
    }

    private func zeros(_ shapes: [String: [Int]]) -> [SafetensorsTensor] {
        shapes.map { name, shape in
            SafetensorsTensor(name: name, shape: shape, values: [Float](repeating: 0, count: shape.reduce(1, *)))
        }
    }

    @Test func theDemoModelIsComplete() throws {
        let inspection = try ModelInspection(path: demoModelPath)
        #expect(inspection.kind == "model" && inspection.problems.isEmpty && inspection.unused.isEmpty)
        #expect(inspection.predictionType == "epsilon" && inspection.nativeSize == 64)
        #expect(inspection.parts.map(\.name) == ["text_encoder", "unet", "vae"])
        for part in inspection.parts {
            let checkpoint = try Checkpoint(directory: demoModelPath + "/" + part.name)
            #expect(part.bytes == checkpoint.byteCount && part.tensors == checkpoint.names.count)
            #expect(part.parameters == part.bytes / 2 && part.types == ["F16": 1] && part.format == "safetensors")
        }
        let decoded = try JSONDecoder().decode(ModelInspection.self, from: Data(try inspection.json().utf8))
        #expect(decoded == inspection)
    }

    @Test func whatASingleFileLacksAndHasTooMuchIsTold() throws {
        let fixture = try SingleFileFixture("sd2")
        let extra = zeros(["model_ema.decay": [1], "model_ema.num_updates": [1], "alphas_cumprod": [1000]])
        let whole = try inspect(torchFile(fixture.tensors() + extra, numbers: ["global_step": 875_000]))
        #expect(whole.kind == "model" && whole.family == "Stable Diffusion 2.x" && whole.problems.isEmpty)
        // An autoencoder of three levels makes 4 pixels of a latent, so that the 64 latents of 512 pixels are fewer.
        #expect(whole.predictionType == "epsilon" && whole.nativeSize == 256 && whole.task == nil)
        // The last layer of the text encoder is not read, nor are its projection and its temperature.
        #expect(whole.unused == ["model_ema": 2, "alphas_cumprod": 1, "cond_stage_model": 14])
        #expect(whole.parts.allSatisfy { $0.format == "PyTorch" })
        #expect(whole.text.contains("not used: cond_stage_model (14), model_ema (2), alphas_cumprod (1)"))

        let missing = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
        let lacking = try inspect(
            safetensors(fixture.tensors { $0 == missing ? nil : $0 == "model.diffusion_model.out.0.bias" ? [63] : $1 })
        )
        #expect(lacking.parts.first { $0.name == "unet" }?.faults.count == 2)
        #expect(lacking.problems.count == 1 && lacking.text.contains("unet: 2 tensors"))
        #expect(lacking.parts.flatMap(\.faults).contains { $0.contains(missing) })
        // No autoencoder at all.
        let half = try inspect(safetensors(fixture.tensors { $0.hasPrefix("first_stage_model.") ? nil : $1 }))
        #expect(half.kind == "model" && half.problems.count == 1 && half.problems[0].contains("model.vae"))
    }

    @Test func inpaintingAndXLModelsAreRecognised() throws {
        let inpainting = try inspect(safetensors(SingleFileFixture("sd1-distilled").tensors()))
        #expect(inpainting.family == "Stable Diffusion 1.x" && inpainting.task == "inpainting")
        let xl = try inspect(safetensors(SingleFileFixture("sdxl").tensors(), storage: .float16))
        // 128 latents, of which the fixture's autoencoder makes 4 pixels each.
        #expect(xl.family == "Stable Diffusion XL" && xl.nativeSize == 512 && xl.problems.isEmpty)
        #expect(xl.parts.map(\.name) == ["text_encoder", "text_encoder_2", "unet", "vae"])
        for part in xl.parts {
            #expect(part.tensors > 20 && part.types == ["F16": 1] && part.faults.isEmpty, "\(part)")
        }
    }

    @Test func lorasSayWhatTheyChange() throws {
        let block = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
        let kohya = try inspect(
            safetensors(
                zeros([
                    "lora_unet_\(block).lora_down.weight": [8, 768], "lora_unet_\(block).lora_up.weight": [320, 8],
                    "lora_unet_\(block).alpha": [1],
                    "lora_unet_mid_block_resnets_0_conv1.lora_down.weight": [4, 9, 3, 3],
                    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": [8, 768],
                ]),
                metadata: ["ss_base_model_version": "sd_v1", "modelspec.title": "x\u{1B}[31m"]
            )
        )
        #expect(kohya.kind == "lora" && kohya.family == "Stable Diffusion 1.x" && kohya.problems.isEmpty)
        #expect(
            kohya.details == [
                "naming": "kohya", "rank": "4, 8", "layers": "2 of the UNet, 1 of the text encoder",
                "besides": "convolutions (LoCon)", "ss_base_model_version": "sd_v1", "modelspec.title": "x?[31m",
            ]
        )
        let peft = try inspect(
            safetensors(
                zeros([
                    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": [16, 2048],
                    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": [640, 16],
                    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_magnitude_vector": [640],
                    "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": [16, 1280],
                ])
            )
        )
        #expect(peft.family == "Stable Diffusion XL" && peft.details["naming"] == "diffusers/PEFT")
        #expect(peft.details["besides"] == "DoRA" && peft.details["rank"] == "16")
        #expect(peft.details["layers"] == "1 of the UNet, 1 of the second text encoder")
    }

    @Test func embeddingsAndOthersAreNamed() throws {
        let embedding = try inspect(safetensors(zeros(["emb_params": [3, 1024]])))
        #expect(
            embedding.kind == "embedding" && embedding.family == "Stable Diffusion 2.x"
                && embedding.details["vectors"] == "3"
        )
        let other = try inspect(safetensors(zeros(["anything": [1]])))
        #expect(other.kind == "unknown" && other.problems.count == 1)
        let folder = try ModelInspection(path: demoModelPath + "/vae")
        #expect(folder.kind == "autoencoder" && folder.problems.isEmpty)
        #expect(throws: WeightsError.self) { try ModelInspection(path: "/nowhere") }
    }
}
