import Calora
import CaloraTestSupport
import Foundation
import MinimalSample
import Testing

@Suite struct MeasureTests {
    @Test func printsWhatTheBenchScriptReads() async throws {
        let options = BenchmarkOptions(promptTokens: 8, outputTokens: 2, runs: 1)
        let line = try await measure(model: Models.base, adapter: Models.adapter("spam"), options: options)
        #expect(line.hasPrefix("{") && !line.contains("\n"), "ios/bench.sh takes the first line that begins with a brace")
        let report = try #require(JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])
        #expect(try #require(report["decode_tokens_per_second"] as? Double) > 0)
        #expect(report["swap_us"] != nil)
    }
}
