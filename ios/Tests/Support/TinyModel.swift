import Foundation

/// A random Llama of one layer and 50,000 parameters: what is loaded a thousand times.
public enum TinyModel {
    private static let (vocabulary, hidden, mlp) = (259, 32, 64)

    /// Writes the model with a tokenizer of one token a byte.
    public static func write(to folder: TemporaryFolder) throws {
        let configuration = """
            {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": \(hidden),
             "intermediate_size": \(mlp), "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
             "head_dim": 16, "vocab_size": \(vocabulary), "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
             "rope_theta": 10000.0, "tie_word_embeddings": true, "dtype": "float32", "bos_token_id": 256,
             "eos_token_id": 257, "attention_bias": false, "mlp_bias": false}
            """
        try folder.write(Data(configuration.utf8), "config.json")
        try folder.write(Data(try tokenizer().utf8), "tokenizer.json")
        try folder.write(weights(), "model.safetensors")
    }

    private static func weights() -> Data {
        let layer = "model.layers.0."
        var shapes: [(String, [Int])] = [
            ("model.embed_tokens.weight", [vocabulary, hidden]),
            ("model.norm.weight", [hidden]),
            (layer + "input_layernorm.weight", [hidden]),
            (layer + "post_attention_layernorm.weight", [hidden]),
            (layer + "mlp.down_proj.weight", [hidden, mlp]),
            (layer + "mlp.gate_proj.weight", [mlp, hidden]),
            (layer + "mlp.up_proj.weight", [mlp, hidden]),
        ]
        for name in ["q", "k", "v", "o"] { shapes.append((layer + "self_attn.\(name)_proj.weight", [hidden, hidden])) }
        var random = SplitMix()
        return Safetensors.file(shapes.map { name, shape in
            (name, shape, (0..<shape.reduce(1, *)).map { _ in name.contains("norm") ? 1 : random.next() })
        })
    }

    /// Bytes as GPT-2's tokenizer spells them.
    private static func tokenizer() throws -> String {
        var spelled: [UInt32] = []
        var extra: UInt32 = 256
        for byte in UInt32(0)..<256 {
            switch byte {
            case 33...126, 161...172, 174...255: spelled.append(byte)
            default:
                spelled.append(extra)
                extra += 1
            }
        }
        var entries: [String: Any] = [:]
        for (id, scalar) in spelled.enumerated() {
            entries[String(Unicode.Scalar(scalar)!)] = id
        }
        let special = ["<bos>", "<eos>", "<pad>"]
        for (index, name) in special.enumerated() { entries[name] = 256 + index }
        let added = special.enumerated().map { index, name in
            [
                "id": 256 + index, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            ] as [String: Any]
        }
        let bytes: [String: Any] = [
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        ]
        let tokenizer: [String: Any] = [
            "version": "1.0", "added_tokens": added, "pre_tokenizer": bytes, "decoder": bytes,
            "model": ["type": "BPE", "vocab": entries, "merges": [String]()] as [String: Any],
        ]
        return String(decoding: try JSONSerialization.data(withJSONObject: tokenizer), as: UTF8.self)
    }
}

/// Files of float32 tensors.
public enum Safetensors {
    public static func file(_ tensors: [(name: String, shape: [Int], values: [Float])]) -> Data {
        var header: [String] = []
        var body = Data()
        for (name, shape, values) in tensors {
            let begin = body.count
            values.withUnsafeBytes { body.append(contentsOf: $0) }
            header.append(#""\#(name)":{"dtype":"F32","shape":\#(shape),"data_offsets":[\#(begin),\#(body.count)]}"#)
        }
        var text = "{" + header.joined(separator: ",") + "}"
        while text.utf8.count % 8 != 0 { text += " " }
        var file = Data()
        withUnsafeBytes(of: UInt64(text.utf8.count).littleEndian) { file.append(contentsOf: $0) }
        return file + Data(text.utf8) + body
    }
}

/// Small numbers, the same every time.
private struct SplitMix {
    private var state: UInt64 = 7

    mutating func next() -> Float {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        z ^= z >> 31
        return (Float(z >> 40) / Float(1 << 24) - 0.5) * 0.5
    }
}
